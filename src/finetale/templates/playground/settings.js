/* The settings of sampling: their defaults, their limits, and the seed. */

const NUMBERS = ["max_tokens", "n", "temperature", "top_p", "top_k", "repetition_penalty"];
const FIELDS = [...NUMBERS, "seed", "stops"];
const DEFAULTS = {n: "1", temperature: "0.8", top_p: "0.95", top_k: "0", repetition_penalty: "1", seed: "", stops: ""};
const MOST_TOKENS = {desk: 120, chat: 256};
const STYLES = {
  calm: {temperature: "0.5", top_p: "0.9", repetition_penalty: "1.1"},
  balanced: {temperature: "0.8", top_p: "0.95", repetition_penalty: "1"},
  daring: {temperature: "1.1", top_p: "0.98", repetition_penalty: "1"},
};
const MOST_STOPS = 4;
const LARGEST_TOP_K = 100_000;

class Settings {
  /** `changed` holds the values that differ from the defaults. */
  constructor(onChange) {
    this.changed = {};
    this.onChange = onChange;
    this.limit = 1;
    this.mode = "desk";
    for (const name of FIELDS) {
      byId(name).addEventListener("input", () => { this.changed[name] = byId(name).value; this.mark(); onChange(); });
    }
    for (const [style, values] of Object.entries(STYLES)) {
      document.querySelector(`[data-style=${style}]`).addEventListener("click", () => this.set(values));
    }
    byId("unpin").addEventListener("click", () => this.set({seed: ""}));
    byId("defaults").addEventListener("click", () => { this.changed = {}; this.show(); onChange(); });
  }

  /** Change values. */
  set(values) {
    Object.assign(this.changed, values);
    this.show();
    this.onChange();
  }

  /** Set what the model and the mode allow. A text may take three quarters of the context; the rest is for reading. */
  limitTo(context, mode) {
    this.limit = limitOf(context);
    this.mode = mode;
    this.show();
  }

  show() {
    const most = String(Math.min(MOST_TOKENS[this.mode], this.limit));
    const values = {...DEFAULTS, max_tokens: most, ...this.changed};
    if (Number(values.max_tokens) > this.limit) values.max_tokens = String(this.limit);
    for (const name of FIELDS) byId(name).value = values[name];
    byId("max_tokens").max = this.limit;
    byId("top_k").max = LARGEST_TOP_K;
    byId("max_tokens-help").textContent = say("max_tokens-help", figure(this.limit));
    this.mark();
  }

  /** Mark the style whose values are set. */
  mark() {
    for (const [style, values] of Object.entries(STYLES)) {
      const same = Object.entries(values).every(([name, value]) => Number(byId(name).value) === Number(value));
      document.querySelector(`[data-style=${style}]`).ariaPressed = String(same);
    }
  }

  /** Return the values for a request. A wrong one is a Failure, and its field is shown. */
  read() {
    const found = {};
    for (const name of [...NUMBERS, "seed"]) {
      const field = byId(name);
      if (name === "seed" && field.value === "" && field.validity.valid) continue;
      if (field.value === "" || field.validity.rangeUnderflow || field.validity.rangeOverflow || field.validity.badInput
        || (field.step === "1" && !Number.isInteger(Number(field.value)))) {
        byId("settings").open = true;
        field.focus();
        throw new Failure("bad-field", say(name), figure(field.min, field.min % 1 ? 2 : 0), figure(field.max));
      }
      found[name] = Number(field.value);
    }
    const stops = byId("stops").value.split("\n").filter(Boolean).map(line => line.replaceAll("\\n", "\n"));
    if (stops.length > MOST_STOPS) {
      byId("settings").open = true;
      byId("stops").focus();
      throw new Failure("many-stops");
    }
    found.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
    if (stops.length) found.stop = stops;
    return found;
  }
}

/** Return the most tokens to write at a time for a model with this context. */
const limitOf = context => Math.max(1, Math.floor(context * 0.75));
