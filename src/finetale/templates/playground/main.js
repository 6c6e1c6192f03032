/* The page as a whole: models, modes, sending and stopping, links and drafts. */

class App {
  constructor() {
    this.models = {};
    this.model = "";
    this.mode = "desk";
    this.compare = null; // null: nobody has decided
    this.stopper = null;
    this.settings = new Settings(() => this.changed());
    this.desk = new Desk(this);
    this.chat = new Chat(this);
    this.keepSoon = settled(() => this.keep(), 400);
    this.countSoon = settled(() => this.count(), 500);
    this.listen();
  }

  get running() { return this.stopper !== null; }
  get signal() { return this.stopper?.signal; }
  get part() { return this.mode === "chat" ? this.chat : this.desk; }
  get state() {
    return {mode: this.mode, model: this.model, compare: this.compare, other: byId("other").value, language,
      settings: this.settings.changed, desk: {text: this.desk.text, marks: this.desk.marks}, chat: this.chat.state};
  }

  listen() {
    byId("act").addEventListener("submit", event => { event.preventDefault(); this.run(() => this.part.go()); });
    byId("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", event => {
      if (isComposing(event) || byId("ask-key").open) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); byId("act").requestSubmit(); }
      if (event.key === "Escape" && this.running) { event.preventDefault(); this.stop(); }
    });
    byId("model").addEventListener("change", event => this.use(event.target.value));
    byId("compare").addEventListener("change", event => { this.compare = event.target.checked; this.refresh(); });
    byId("other").addEventListener("change", () => this.refresh());
    byId("to-desk").addEventListener("click", () => this.turnTo("desk"));
    byId("to-chat").addEventListener("click", () => this.turnTo("chat"));
    byId("language").addEventListener("click", () => { language = language === "zh" ? "en" : "zh"; this.speak(); this.changed(); });
    byId("tint").addEventListener("change", event => byId("desk").classList.toggle("plain", !event.target.checked));
    byId("share").addEventListener("click", () => this.share());
    byId("copy").addEventListener("click", () => copy(this.desk.text));
    byId("save-text").addEventListener("click", () => this.mode === "chat"
      ? save(`${say("file-chat")}.txt`, "text/plain", this.chat.asText())
      : save(`${say("file")}.txt`, "text/plain", this.desk.text));
    byId("save-json").addEventListener("click", () => save(`${say("file-chat")}.json`, "application/json", this.chat.asJson()));
    byId("clear").addEventListener("click", () => this.clear());
    byId("text").addEventListener("select", this.countSoon);
    byId("text").addEventListener("click", this.countSoon);
    addEventListener("hashchange", () => this.open());
    addEventListener("pagehide", () => this.keep());
  }

  /** Begin: the draft of this tab, the models, and the text of a link. */
  async start() {
    const draft = readDraft();
    if (draft.language) language = draft.language;
    if (matchMedia("(max-width: 56rem)").matches) byId("settings").open = false;
    this.show(draft);
    this.speak();
    await this.connect(draft);
    await this.open();
  }

  show({settings, desk, chat}) {
    this.settings.changed = settings;
    this.desk.forget();
    this.desk.show(desk);
    this.chat.show(chat);
  }

  /** Ask for the models, and choose those of a state. */
  async connect(wanted) {
    try {
      this.models = await loadModels();
    } catch (failure) {
      this.fail(failure, () => this.connect(wanted));
      return;
    }
    const names = Object.keys(this.models);
    byId("model").replaceChildren(...names.map(name => build("option", {value: name, text: name, "data-model": name})));
    this.choose({...wanted, mode: this.turned ?? wanted.mode}); // a person can be faster than the service
  }

  /** Use the model, the mode and the comparison of a state, as far as they are served. */
  choose({mode, model, compare, other}) {
    const names = Object.keys(this.models);
    if (!names.length) return;
    const tuned = names.find(name => this.models[name].parent in this.models);
    this.model = model in this.models ? model : tuned ?? names[0];
    this.compare = compare;
    this.mode = mode || (this.models[this.model].chat ? "chat" : "desk");
    this.refresh(other);
  }

  use(model) {
    this.model = model;
    this.refresh();
  }

  turnTo(mode) {
    this.turned = mode;
    if (mode === "chat" && this.model && !this.models[this.model].chat) notify(say("no-chat", this.model));
    else this.mode = mode;
    this.refresh();
    (this.mode === "chat" ? byId("draft") : byId("text")).focus();
  }

  /** Return the models that write: the one that is chosen, and with a comparison the other one, the base first. */
  compared() {
    const other = byId("other").value;
    if (byId("comparing").hidden || !byId("compare").checked || !other) return [this.model];
    return this.models[this.model].parent === other ? [other, this.model] : [this.model, other];
  }

  /** Show the model, the mode and the limits that belong to them. */
  refresh(wanted = byId("other").value) {
    const found = this.models[this.model];
    if (!found) return;
    if (this.mode === "chat" && !found.chat) this.mode = "desk";
    const isChat = this.mode === "chat";
    byId("model").value = this.model;
    document.title = `${this.model} · Finetale`;
    document.body.dataset.mode = this.mode;
    byId("desk").hidden = isChat;
    byId("talk").hidden = !isChat;
    byId("draft").hidden = !isChat;
    byId("to-desk").ariaPressed = String(!isChat);
    byId("to-chat").ariaPressed = String(isChat);
    byId("to-chat").ariaDisabled = String(!found.chat);
    const related = name => this.models[name].parent === this.model || found.parent === name;
    const others = Object.keys(this.models).filter(name =>
      name !== this.model && (!isChat || this.models[name].chat || found.parent === name));
    byId("other").replaceChildren(...others.map(name => build("option", {value: name, text: name})));
    const other = others.includes(wanted) ? wanted : others.find(related) ?? others[0] ?? "";
    byId("other").value = other;
    byId("comparing").hidden = !others.length;
    // A service that was started with a base and one tuned model is there to compare them.
    byId("compare").checked = this.compare ?? (Object.keys(this.models).length === 2 && others.some(related));
    byId("n").disabled = this.compared().length > 1;
    const contexts = this.compared().map(name => this.models[name].max_model_len);
    this.settings.limitTo(Math.max(...contexts), this.mode);
    byId("go").textContent = say(isChat ? "send" : "continue");
    byId("go").title = say(isChat ? "keys-chat" : "keys-desk");
    this.changed();
  }

  /** Write the words of the page in the language. */
  speak() {
    translate();
    this.settings.show();
    this.chat.render();
    this.desk.offer(this.desk.cards.map(card => card.take));
    announce("");
    this.refresh();
  }

  /** Note that there is something to keep and to count. */
  changed() {
    this.keepSoon();
    this.countSoon();
  }

  keep() {
    if (keepDraft(this.state) || this.warned) return;
    this.warned = true;
    notify(say("draft-full"), [], true);
  }

  async count() {
    if (!this.model || this.running) return;
    try {
      const {count, isCut, context} = await this.part.count({asks: false});
      const isOver = isCut || count >= context;
      byId("count").classList.toggle("over", isOver);
      byId("count").textContent = isOver && this.mode === "desk"
        ? say("count-over", figure(context)) : say("count", figure(count), figure(context));
    } catch {
      byId("count").textContent = ""; // sending tells what is wrong
    }
  }

  /** Do work that the reader can stop. Only one at a time. */
  async run(work) {
    if (this.running || !this.model) return;
    this.stopper = new AbortController();
    hush();
    byId("go").hidden = true;
    byId("stop").hidden = false;
    document.body.classList.add("running");
    try {
      await work();
    } catch (failure) {
      if (this.signal.aborted) announce(say("stopped"));
      else this.fail(failure, () => this.run(this.mode === "chat" ? () => this.retry() : work));
    } finally {
      const hadFocus = document.activeElement === byId("stop");
      this.stopper = null;
      byId("go").hidden = false;
      byId("stop").hidden = true;
      document.body.classList.remove("running");
      if (hadFocus) byId("go").focus();
      if (this.mode === "chat") {
        this.chat.render();
        follow(byId("turns"));
      }
      this.changed();
    }
  }

  /** Ask again for the last answer, which failed. */
  retry() {
    const {messages} = this.chat;
    return messages.at(-1)?.role === "assistant" ? this.chat.answer(messages.length - 1) : this.chat.go();
  }

  stop() { this.stopper?.abort(); }

  /** Let the service write; `onChange` is called at most once per frame. */
  async write(jobs, onChange) {
    announce(say("waiting"));
    let isDue = false, isWriting = false;
    const takes = jobs.flatMap(job => job.takes);
    const change = () => {
      if (!isWriting && takes.some(take => take.state === "writing")) {
        isWriting = true;
        announce(say("writing"));
      }
      if (isDue) return;
      isDue = true;
      requestAnimationFrame(() => { isDue = false; if (this.running) onChange(); });
    };
    const results = await Promise.allSettled(jobs.map(job =>
      write(job, this.signal, change, seconds => announce(say("retry-in", seconds)))));
    onChange();
    const failed = results.find(result => result.status === "rejected");
    if (this.signal.aborted) announce(say("stopped"));
    else if (failed) throw failed.reason;
    else announce(takes.length > 1 ? say("done-many", takes.length) : say("done"));
  }

  /** Say what went wrong, with a way to try again. */
  fail(failure, again) {
    announce(say("failed"));
    const key = failure.code === "model_not_found" ? new Failure("gone-model", this.model) : failure;
    const isInput = ["bad-field", "many-stops", "no-message"].includes(failure.key);
    notify(key instanceof Failure ? key.sentence : String(failure), isInput ? [] : [["try-again", again]], true);
    if (failure.code === "model_not_found") this.connect(this.state);
  }

  /** Keep a seed for the next texts. */
  pin(seed) {
    this.settings.set({seed: String(seed)});
    announce(say("pinned", seed));
  }

  /** Empty the text or the conversation; it can be brought back. */
  clear() {
    if (this.running) return;
    const before = structuredClone(this.state);
    if (this.mode === "chat") this.chat.show({...this.chat.state, draft: "", messages: []});
    else {
      this.desk.forget();
      this.desk.show({text: "", marks: []});
    }
    this.changed();
    notify(say("cleared"), [["back", () => { this.show(before); this.changed(); }]]);
  }

  /** Copy a link to the text or the conversation, with the settings. */
  async share() {
    const {desk, chat, ...rest} = this.state;
    const told = chat.messages.map(message => message.role === "user" ? message
      : {...message, takes: [message.takes[message.chosen ?? message.from]], from: 0, chosen: 0});
    const link = await linkOf({...rest, ...(this.mode === "chat" ? {chat: {...chat, messages: told}} : {desk})});
    if (link.length > MAX_LINK) notify(say("link-long", figure(link.length), figure(MAX_LINK)), [], true);
    else await copy(link, "link-copied");
  }

  /** Show the text of a link. The reader's own text can be brought back. */
  async open() {
    if (!location.hash.startsWith("#s=") || this.running) return;
    const {hash} = location;
    history.replaceState(null, "", location.pathname); // a reload must not replace what is typed from now on
    try {
      const linked = await stateOf(hash);
      const own = structuredClone(this.state);
      this.show(linked);
      this.choose(linked);
      const missing = linked.model && !(linked.model in this.models) ? ` ${say("link-model", linked.model)}` : "";
      if (hasText(own) || missing) {
        const back = () => { this.show(own); this.choose(own); };
        notify(say("link-shown") + missing, hasText(own) ? [["link-back", back]] : []);
      }
    } catch (failure) {
      this.fail(failure, () => {});
    }
  }
}

new App().start();
