/* The conversation: messages, answers in several versions, and what can be done with each. */

class Chat {
  constructor(app) {
    this.app = app;
    this.messages = [];
    this.cards = new Map(); // by take
    this.system = byId("system");
    this.draft = byId("draft");
    for (const field of [this.system, this.draft]) field.addEventListener("input", () => app.changed());
    this.draft.addEventListener("keydown", event => {
      // On a phone, Enter is the only way to a new line.
      const sends = event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey;
      if (!sends || isComposing(event) || matchMedia("(pointer: coarse)").matches) return;
      event.preventDefault();
      byId("act").requestSubmit();
    });
  }

  get state() { return {system: this.system.value, draft: this.draft.value, messages: this.messages}; }

  show({system, draft, messages}) {
    this.system.value = system;
    this.draft.value = draft;
    this.messages = messages;
    byId("system-box").open = Boolean(system);
    this.render();
  }

  /** Return the text of a message: of an answer, that of the chosen take. */
  textOf(message) {
    return message.role === "user" ? message.text : message.takes[message.chosen ?? message.from].text;
  }

  /** Return the conversation for a request. Answers that failed are left out. */
  sent(messages) {
    const system = this.system.value.trim() ? [{role: "system", content: this.system.value}] : [];
    const turns = messages.map(message => ({role: message.role, content: this.textOf(message)}));
    return [...system, ...turns.filter(turn => turn.role === "user" || turn.content)]
      .map(turn => ({...turn, content: turn.content.toWellFormed()}));
  }

  /** Send the draft, or ask for an answer to the last message. */
  async go() {
    this.app.settings.read(); // a wrong setting leaves the draft where it is
    const text = this.draft.value;
    if (text.trim()) {
      this.messages.push({role: "user", text});
      this.draft.value = "";
    } else if (this.messages.at(-1)?.role !== "user") {
      this.draft.focus();
      throw new Failure("no-message");
    }
    await this.answer(this.messages.length);
  }

  /** Write an answer at a place of the conversation; an answer that is there gets further takes. */
  async answer(at) {
    const settings = this.app.settings.read();
    const sent = this.sent(this.messages.slice(0, at));
    const models = this.app.compared();
    const takes = [];
    const groups = models.map(model => {
      const mine = Array.from({length: models.length > 1 ? 1 : settings.n}, () => newTake(model, settings.seed));
      takes.push(...mine);
      return mine;
    });
    const message = this.messages[at] ?? {role: "assistant", takes: []};
    message.from = message.takes.length;
    message.takes.push(...takes);
    message.chosen = takes.length > 1 ? null : message.from;
    this.messages[at] = message;
    this.render();
    this.app.changed();
    follow(byId("turns"), Infinity);
    await this.app.write(groups.map((mine, number) => this.job(models[number], sent, settings, mine)), () => {
      takes.forEach(take => this.cards.get(take)?.update());
      if (at === this.messages.length - 1) follow(byId("turns"));
    });
  }

  /** Return the job for one model. */
  job(model, sent, settings, takes, options = {}) {
    return {takes, prepare: () => this.request(model, sent, settings, options)};
  }

  /** Return path and body of a request; its tokens are what there is room for after the conversation. */
  async request(model, sent, settings, options) {
    const {chat, max_model_len: context} = this.app.models[model];
    // A base without a chat template reads the conversation as the template of its tuned model writes it.
    const ids = await tokenize({model: chat ? model : this.app.model, messages: sent, ...options}, {signal: this.app.signal});
    const room = context - ids.length;
    if (room < 1) throw new Failure("too-long", figure(ids.length), figure(context));
    const max_tokens = Math.min(settings.max_tokens, room);
    return chat
      ? {path: "v1/chat/completions", body: {...settings, ...options, model, messages: sent, max_tokens}}
      : {path: "v1/completions", body: {...settings, model, prompt: ids, max_tokens}};
  }

  /** Let the model go on with an answer that was cut or stopped. */
  async goOn(at) {
    const message = this.messages[at];
    const take = message.takes[message.chosen ?? message.from];
    const settings = {...this.app.settings.read(), n: 1};
    const more = newTake(take.model, settings.seed), begun = take.text, tokens = take.tokens;
    const options = {add_generation_prompt: false, continue_final_message: true};
    const job = this.job(take.model, this.sent(this.messages.slice(0, at + 1)), settings, [more], options);
    await this.app.write([job], () => {
      Object.assign(take, {...more, text: begun + more.text, tokens: tokens === null || more.tokens === null ? null : tokens + more.tokens});
      this.cards.get(take)?.update();
      follow(byId("turns"));
    });
  }

  /** Change the conversation so that the change can be taken back. */
  change(words, act) {
    const before = structuredClone(this.messages);
    act();
    this.render();
    this.app.changed();
    notify(say(words), [["back", () => { this.messages = before; this.render(); this.app.changed(); }]]);
  }

  remove(at) {
    // A question goes with its answer: most templates want them in turn.
    const pair = this.messages[at].role === "user" && this.messages[at + 1]?.role === "assistant";
    this.change("deleted", () => this.messages.splice(at, pair ? 2 : 1));
  }

  /** Turn a message into a field; sending it again removes what came after it. */
  edit(at, item) {
    const field = build("textarea", {rows: 4, dir: "auto", lang: "", "aria-label": say("edit-label")});
    field.value = this.messages[at].text;
    const send = () => {
      if (!field.value.trim() || this.app.running) return;
      const act = () => { this.messages.splice(at, this.messages.length, {role: "user", text: field.value}); };
      if (at < this.messages.length - 1) this.change("removed", act); else act();
      this.app.run(() => this.answer(at + 1));
    };
    field.addEventListener("keydown", event => {
      if (isComposing(event)) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); event.stopPropagation(); send(); }
      if (event.key === "Escape") { event.stopPropagation(); this.render(); }
    });
    item.replaceChildren(build("h3", {text: say("you")}), field,
      build("div", {class: "actions"}, button("resend", send), button("cancel", () => this.render())));
    field.focus();
  }

  render() {
    this.cards.clear();
    byId("turns").replaceChildren(...this.messages.map((message, at) =>
      message.role === "user" ? this.question(message, at) : this.reply(message, at)));
    byId("no-turns").hidden = Boolean(this.messages.length);
  }

  question(message, at) {
    const item = build("li", {class: "turn user"});
    const act = work => () => { if (!this.app.running) work(); };
    item.append(build("h3", {text: say("you")}),
      build("div", {class: "prose", lang: "", dir: "auto", text: message.text}),
      build("div", {class: "actions"}, button("edit", act(() => this.edit(at, item))),
        button("copy", () => copy(message.text)), button("delete", act(() => this.remove(at)))));
    return item;
  }

  reply(message, at) {
    const isLast = at === this.messages.length - 1;
    const {takes, chosen, from} = message;
    const shown = chosen === null ? takes.slice(from) : [takes[chosen]];
    const titles = shown.length > 1 ? titlesOf(shown, this.app.models) : [shown[0].model];
    const act = work => () => { if (!this.app.running) { work(); this.render(); this.app.changed(); } };
    const grid = build("div", {class: areCompared(shown) ? "takes compared" : "takes"}, ...shown.map((take, number) => {
      const choose = shown.length > 1 ? act(() => { message.chosen = from + number; }) : null;
      const card = new Card(take, titles[number], choose, seed => this.app.pin(seed));
      this.cards.set(take, card);
      return card.element;
    }));
    const item = build("li", {class: "turn answer"}, grid);
    const again = isLast ? [button("again", act(() => this.app.run(() => this.answer(at))))] : [];
    if (shown.length === 1) {
      const take = shown[0], actions = grid.querySelector(".actions");
      actions.prepend(...again);
      if (isLast && take.text && (take.reason === "length" || take.state !== "done") && this.app.models[take.model]?.chat) {
        actions.append(button("go-on", act(() => this.app.run(() => this.goOn(at)))));
      }
      actions.append(button("delete", act(() => this.remove(at))));
      if (takes.length > 1) actions.append(this.pager(message, act));
    } else item.append(build("div", {class: "actions"}, ...again));
    return item;
  }

  /** Return the buttons that lead from one version of an answer to the others. */
  pager(message, act) {
    const {takes, chosen} = message;
    const turn = (sign, key, to) => build("button", {type: "button", text: sign, "aria-label": say(key),
      disabled: !takes[to], onclick: act(() => { message.chosen = to; })});
    return build("span", {class: "pager"}, turn("‹", "earlier", chosen - 1),
      build("span", {text: say("take-of", chosen + 1, takes.length)}), turn("›", "later", chosen + 1));
  }

  /** Return the conversation as text for a file. */
  asText() {
    const system = this.system.value.trim() ? [`[${say("system")}]\n${this.system.value}`] : [];
    const turns = this.messages.map(message => {
      const name = message.role === "user" ? say("you") : message.takes[message.chosen ?? message.from].model;
      return `[${name}]\n${this.textOf(message)}`;
    });
    return `${[...system, ...turns].join("\n\n")}\n`;
  }

  /** Return the conversation as JSON for a file, with the seed of each answer. The messages are those of OpenAI's API. */
  asJson() {
    const system = this.system.value.trim() ? [{role: "system", content: this.system.value}] : [];
    const turns = this.messages.map(message => {
      if (message.role === "user") return {role: "user", content: message.text};
      const {model, seed, text} = message.takes[message.chosen ?? message.from];
      return {role: "assistant", content: text, model, seed};
    });
    return `${JSON.stringify({messages: [...system, ...turns]}, null, 2)}\n`;
  }

  async count(options) {
    const {model} = this.app;
    const draft = this.draft.value.trim() ? [{role: "user", text: this.draft.value}] : [];
    const messages = this.sent([...this.messages, ...draft]);
    const context = this.app.models[model].max_model_len;
    return {count: messages.length ? (await tokenize({model, messages}, options)).length : 0, isCut: false, context};
  }
}
