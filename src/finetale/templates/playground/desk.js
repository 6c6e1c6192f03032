/* The writing desk: one text that the model continues. A mirror behind the text area colours what the model wrote. */

const MAX_HISTORY = 50;
const SENT_CHARACTERS = 6; // per token of the context: a longer end of the text would not be read

class Desk {
  constructor(app) {
    this.app = app;
    this.area = byId("text");
    this.mirror = document.querySelector(".mirror");
    this.text = "";
    this.marks = []; // [start, end) of what the model wrote
    this.history = [];
    this.future = [];
    this.last = null; // the last continuation: the state before it, and its takes
    this.cards = [];
    this.area.addEventListener("input", () => this.typed());
    this.area.addEventListener("keydown", event => this.pressed(event));
    byId("undo").addEventListener("click", () => this.step(this.history, this.future));
    byId("redo").addEventListener("click", () => this.step(this.future, this.history));
    byId("again").addEventListener("click", () => app.run(() => this.again()));
  }

  /** Show another text. */
  show({text, marks}, caret = text.length) {
    this.text = text;
    this.marks = marks;
    if (this.area.value !== text) this.area.value = text;
    this.area.setSelectionRange(caret, caret);
    this.paint();
  }

  /** Empty the history, for a text that has nothing to do with the one before. */
  forget() {
    Object.assign(this, {history: [], future: [], last: null});
    this.offer([]);
  }

  get state() { return {text: this.text, marks: this.marks, caret: this.area.selectionEnd}; }

  typed() {
    this.marks = shifted(this.marks, this.text, this.area.value, this.area.selectionEnd);
    this.text = this.area.value;
    this.future = [];
    this.paint();
    this.app.changed();
  }

  /** Undo with the keyboard what the page did; the browser undoes what was typed. */
  pressed(event) {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z" || isComposing(event)) return;
    const [from, to] = event.shiftKey ? [this.future, this.history] : [this.history, this.future];
    if (!from.length || (!event.shiftKey && this.text !== this.written) || this.app.running) return;
    event.preventDefault();
    this.step(from, to);
  }

  step(from, to) {
    if (!from.length) return;
    to.push(this.state);
    const {text, marks, caret} = from.pop();
    this.offer([]);
    this.last = null;
    this.show({text, marks}, caret);
    this.written = text;
    this.area.focus({preventScroll: true});
    this.app.changed();
  }

  remember(state) {
    this.history = [...this.history, state].slice(-MAX_HISTORY);
    this.future = [];
  }

  paint() {
    const parts = [];
    let at = 0;
    for (const [start, end] of this.marks) {
      parts.push(this.text.slice(at, start), build("mark", {text: this.text.slice(start, end)}));
      at = end;
    }
    this.mirror.replaceChildren(...parts, `${this.text.slice(at)} `); // with a space, so that an empty last line counts
    byId("undo").disabled = !this.history.length;
    byId("redo").disabled = !this.future.length;
    byId("again").disabled = !this.last;
  }

  /** Put a text of the model at the cursor of a state. */
  insert({text, marks, caret}, made) {
    const before = text.slice(0, caret);
    const own = before.endsWith(" ") && made.startsWith(" ") ? made.slice(1) : made;
    const whole = before + own + text.slice(caret);
    const moved = shifted(marks, text, whole, caret + own.length);
    const mark = own ? [[caret, caret + own.length]] : [];
    this.show({text: whole, marks: [...moved, ...mark].sort((one, other) => one[0] - other[0])}, caret + own.length);
    this.written = whole;
  }

  /** Return what the model reads for a state. Spaces before the cursor are part of the next token, so they are left out. */
  prompt({text, caret}, context) {
    const before = text.slice(0, caret).replace(/ +$/, "");
    return before.slice(-context * SENT_CHARACTERS).replace(/^[\udc00-\udfff]/, "").toWellFormed();
  }

  /** Continue the text, or offer several continuations. */
  async go(before = this.state) {
    const settings = this.app.settings.read();
    const models = this.app.compared();
    const jobs = models.map(model => {
      const context = this.app.models[model].max_model_len;
      const takes = Array.from({length: models.length > 1 ? 1 : settings.n}, () => newTake(model, settings.seed));
      const body = {...settings, model, prompt: this.prompt(before, context),
        max_tokens: Math.min(settings.max_tokens, limitOf(context)), truncate_prompt_tokens: -1};
      return {takes, prepare: () => ({path: "v1/completions", body})};
    });
    const takes = jobs.flatMap(job => job.takes);
    this.last = {before, takes};
    this.area.readOnly = true;
    try {
      if (takes.length > 1) {
        this.offer(takes);
        byId("offers").scrollIntoView({block: "nearest"});
        await this.app.write(jobs, () => this.cards.forEach(card => card.update()));
      } else {
        this.offer([]);
        const now = this.state;
        this.remember(now);
        await this.app.write(jobs, () => {
          this.insert(before, takes[0].text);
          const end = this.mirror.querySelectorAll("mark");
          if (end.length) follow(end[end.length - 1]);
        });
        if (!takes[0].text) {
          this.history.pop();
          this.show(now, now.caret);
        }
        byId("made").textContent = noteOf(takes[0]);
        byId("made").append(" ", pinButton(takes[0].seed, seed => this.app.pin(seed)));
      }
    } finally {
      this.area.readOnly = false;
      this.paint();
    }
  }

  /** Write the last continuation again, from the same place. The present text stays in the history. */
  async again() {
    if (!this.last) return;
    await this.go(this.last.before);
  }

  /** Show continuations to choose from. */
  offer(takes) {
    byId("made").replaceChildren();
    const titles = titlesOf(takes, this.app.models);
    byId("offers").classList.toggle("compared", areCompared(takes));
    this.cards = takes.map((take, number) =>
      new Card(take, titles[number], () => this.choose(number), seed => this.app.pin(seed)));
    byId("offers").replaceChildren(...this.cards.map(card => card.element));
  }

  /** Put an offered text into the page, in place of one that was chosen before if it has not been changed. */
  choose(number) {
    if (this.app.running) return;
    const {before, takes, chosen} = this.last;
    if (chosen === undefined) this.remember(before.text === this.text ? before : this.state);
    const from = before.text === this.text || (chosen !== undefined && this.text === this.written) ? before : this.state;
    this.insert(from, takes[number].text);
    this.last = {before: from, takes, chosen: number};
    this.cards.forEach((card, each) => card.mark(each === number));
    this.paint();
    this.area.focus({preventScroll: true});
    this.app.changed();
  }

  /** Return the tokens that the model reads, and its context. */
  async count(options) {
    const {model} = this.app;
    const context = this.app.models[model].max_model_len;
    const prompt = this.prompt(this.state, context);
    const isCut = prompt.length < this.text.slice(0, this.area.selectionEnd).trimEnd().length;
    return {count: prompt ? (await tokenize({model, prompt}, options)).length : 0, isCut, context};
  }
}

/** Return marks after an edit of the text that ends at `end` in the new one. Typed text is not the model's. */
function shifted(marks, old, now, end) {
  const most = Math.min(old.length, now.length);
  let same = now.length - end, start = 0; // a letter can be typed before an equal one: only the cursor tells which is new
  const isKnown = same <= most && old.endsWith(now.slice(end));
  while (start < most - (isKnown ? same : 0) && old[start] === now[start]) start++;
  if (!isKnown) same = 0;
  while (!isKnown && same < most - start && old[old.length - 1 - same] === now[now.length - 1 - same]) same++;
  const removed = old.length - same, moved = now.length - old.length;
  return marks.flatMap(([from, to]) => [
    [from, Math.min(to, start)],
    [Math.max(from, removed) + moved, to + moved],
  ]).filter(([from, to]) => from < to);
}
