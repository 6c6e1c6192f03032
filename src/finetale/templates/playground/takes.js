/* Texts side by side: alternatives, and before and after. */

/** A card with one take. `choose` is called when it is chosen, or is null; `pin` is called with its seed. */
class Card {
  constructor(take, title, choose, pin) {
    this.take = take;
    this.text = build("div", {class: "prose", lang: "", dir: "auto"});
    this.note = build("p", {class: "note"});
    this.actions = build("div", {class: "actions"});
    this.choose = choose && button("choose", choose);
    this.pin = pinButton(take.seed, pin);
    this.actions.append(...(choose ? [this.choose] : []), button("copy", () => copy(take.text)), this.pin);
    this.element = build("article", {class: "take", "aria-label": title}, build("h3", {text: title}), this.text, this.note, this.actions);
    this.update();
  }

  /** Show what has changed. */
  update() {
    const {take} = this;
    const ended = ["done", "stopped", "failed"].includes(take.state);
    const text = take.text.replace(/^ /, ""); // the space between the words before and these
    if (this.text.textContent !== text) this.text.textContent = text;
    this.element.ariaBusy = String(!ended);
    this.element.classList.toggle("failed", take.state === "failed");
    this.note.textContent = ended ? noteOf(take) : "";
    this.actions.hidden = !ended;
    if (this.choose) this.choose.hidden = !take.text;
  }

  /** Mark the card as the chosen one. */
  mark(isChosen) {
    this.element.classList.toggle("chosen", isChosen);
    if (this.choose) {
      this.choose.textContent = say(isChosen ? "chosen" : "choose");
      this.choose.ariaPressed = String(isChosen);
    }
  }
}

/** Return what there is to say about a take that has ended. */
function noteOf(take) {
  const seconds = figure(take.seconds ?? 0, 1);
  const parts = [];
  if (take.error) parts.push(take.error);
  if (take.state === "done" && !take.text) parts.push(say("nothing"));
  parts.push(take.tokens === null ? say("made-many", seconds, take.seed) : say("made", figure(take.tokens), seconds, take.seed));
  if (take.state === "stopped") parts.push(say("was-stopped"));
  else if (take.reason === "length") parts.push(say("at-limit"));
  return parts.join(" · ");
}

/** Return whether takes come from several models. */
const areCompared = takes => new Set(takes.map(take => take.model)).size > 1;

/** Return the headings of takes: a number, or the model, and before and after for a base and its tuned model. */
function titlesOf(takes, models) {
  if (!areCompared(takes)) return takes.map((_, number) => say("take-of", number + 1, takes.length));
  const isTuned = models[takes[1].model]?.parent === takes[0].model;
  return takes.map(({model}, number) => isTuned ? say(number ? "after" : "before", model) : model);
}

/** Build the button that keeps a seed. */
function pinButton(seed, pin) {
  const made = button("pin", () => pin(seed));
  made.ariaLabel = say("pin-label", seed);
  return made;
}
