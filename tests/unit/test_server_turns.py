"""Test the queue: clients take turns, users of a client take turns, and the length is limited per client and in all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from finetale.server.turns import Turns


def served(turns: Turns[str]) -> list[str]:
    """Return all waiting items in the order of service."""
    found = []
    while (thing := turns.first()) is not None:
        found.append(thing)
        turns.pass_on(done=True)
    return found


def test_clients_and_their_users_take_turns() -> None:
    turns: Turns[str] = Turns(10)
    for thing, client, user in (
        ("a1", "a", "x"),
        ("a2", "a", "x"),
        ("a3", "a", "x"),
        ("b1", "b", ""),
        ("a4", "a", "y"),
        ("b2", "b", ""),
    ):
        turns.put(thing, client, user)
    assert list(turns) == ["a1", "a2", "a3", "a4", "b1", "b2"]
    assert served(turns) == ["a1", "b1", "a4", "b2", "a2", "a3"], "a client gets no more turns by naming several users"
    assert len(turns) == 0


def test_an_unfinished_item_keeps_its_place() -> None:
    turns: Turns[str] = Turns(10)
    for thing, client in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        turns.put(thing, client)
    turns.pass_on(done=False)
    assert served(turns) == ["b1", "a1", "a2"]


def test_a_full_queue_has_some_room_for_new_clients() -> None:
    turns: Turns[str] = Turns(4)
    for number in range(4):
        assert turns.has_room("a")
        turns.put(f"a{number}", "a", str(number))
    assert not turns.has_room("a")
    assert turns.has_room("b")
    turns.put("b1", "b")
    assert not turns.has_room("b")
    assert not turns.has_room("c"), "new clients can exceed the limit by a quarter in all"
    turns.remove("a2")
    assert not turns.has_room("a")
    turns.put("c1", "c")
    turns.remove("nothing")
    assert len(turns) == 5


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "pass", "done", "remove"]), st.integers(0, 3), st.integers(0, 2)),
        max_size=60,
    )
)
def test_no_item_is_lost(steps: list[tuple[str, int, int]]) -> None:
    turns: Turns[int] = Turns(8)
    waiting: list[int] = []
    for number, (what, client, user) in enumerate(steps):
        if what == "put":
            if turns.has_room(str(client)):
                turns.put(number, str(client), str(user))
                waiting.append(number)
        elif what == "remove":
            turns.remove(client)
            waiting = [thing for thing in waiting if thing != client]
        elif (first := turns.first()) is not None:
            turns.pass_on(done=what == "done")
            if what == "done":
                waiting.remove(first)
        assert sorted(turns) == waiting
        assert len(turns) == len(waiting) <= 10
