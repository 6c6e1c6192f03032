/* The page: the writing desk, its settings and words. WORDS has the words by language. */

const byId = (id) => document.getElementById(id);
const text = byId("text");
const FIELDS = ["length", "temperature", "top_p", "top_k", "seed"];

let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
let before = null; // the text before the last writing
let saidLast = ["loading"];
let running = false;

/* The worker: its script is a text of this page, because a page that was opened from a file can load no other file. */
const worker = new Worker(URL.createObjectURL(new Blob([byId("worker").textContent], { type: "text/javascript" })));
const waiting = new Map();
let lastCall = 0;

worker.onmessage = ({ data: { id, piece, result, error } }) => {
  const call = waiting.get(id);
  if (piece !== undefined) {
    call.receive(piece);
    return;
  }
  waiting.delete(id);
  if (error === undefined) call.resolve(result);
  else call.reject(new Error(error));
};
worker.onerror = (event) => {
  for (const call of waiting.values()) call.reject(new Error(event.message));
  waiting.clear();
};

function ask(call, values, receive) {
  return new Promise((resolve, reject) => {
    lastCall += 1;
    waiting.set(lastCall, { resolve, reject, receive });
    worker.postMessage({ id: lastCall, call, values });
  });
}

function words(key, ...values) {
  return values.reduce((found, value, place) => found.replace(`{${place}}`, () => value), WORDS[language][key]);
}

function say(...message) {
  saidLast = message;
  byId("status").textContent = words(...message);
}

function translate() {
  document.documentElement.lang = language;
  for (const item of document.querySelectorAll("[data-say]")) item.textContent = words(item.dataset.say);
  text.setAttribute("aria-label", words("text"));
  text.placeholder = words("text-hint");
  byId("seed").placeholder = words("seed-any");
  byId("language").textContent = words("language");
  byId("language").lang = language === "zh" ? "en" : "zh";
  say(...saidLast);
  showMade();
}

let made = null;
function showMade() {
  byId("made").textContent = made ? words("made", made.count, made.seconds.toFixed(1), made.seed) : "";
}

/* Return the settings, or null after a message about the field that is invalid. */
function settings() {
  const found = {};
  for (const name of FIELDS) {
    const field = byId(name);
    if (!field.checkValidity() || (field.value === "" && name !== "seed")) {
      byId("settings").open = true;
      say("bad-field", words(name), field.min, field.max);
      field.focus();
      return null;
    }
    found[name] = field.value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1 : Number(field.value);
  }
  return found;
}

function mark(now) {
  running = now;
  text.readOnly = now;
  byId("write").hidden = now;
  byId("stop").hidden = !now;
  for (const name of ["again", "undo"]) byId(name).disabled = now || before === null;
}

async function write() {
  const chosen = running ? null : settings();
  if (!chosen) return;
  before = text.value;
  made = null;
  showMade();
  const held = document.activeElement === byId("write");
  mark(true);
  if (held) byId("stop").focus();
  say("writing");
  try {
    const result = await ask("write", { text: before, settings: chosen }, (piece) => {
      const follows = window.innerHeight + window.scrollY >= document.body.scrollHeight - 80;
      text.value += piece;
      fit();
      if (follows) window.scrollTo(0, document.body.scrollHeight);
    });
    made = { ...result, seed: chosen.seed };
    say(result.stopped ? "stopped" : result.ended ? "ended" : "done");
    showMade();
  } catch (error) {
    say("failed", error.message);
  }
  const stops = document.activeElement === byId("stop");
  mark(false);
  if (stops) byId("write").focus();
}

function undo() {
  text.value = before;
  before = null;
  made = null;
  showMade();
  fit();
  mark(false);
  text.focus();
}

/* Make the desk as high as its text. */
function fit() {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

async function copy() {
  try {
    await navigator.clipboard.writeText(text.value);
    say("copied");
  } catch {
    text.select();
    say(document.execCommand("copy") ? "copied" : "copy-failed");
  }
}

byId("act").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
byId("stop").addEventListener("click", () => ask("stop"));
byId("again").addEventListener("click", () => {
  text.value = before;
  write();
});
byId("undo").addEventListener("click", undo);
byId("copy").addEventListener("click", copy);
byId("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  translate();
});
text.addEventListener("input", () => {
  before = null;
  mark(false);
  fit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    write();
  } else if (event.key === "Escape" && running) {
    ask("stop");
  }
});

if (window.innerWidth < 900) byId("settings").open = false;
translate();
fit();

/* What a program can call, such as the proof of the export. `read` returns the scores as fp32 in base64, in parts. */
const finetale = {
  ready: ask("load", { about: JSON.parse(byId("model").textContent), weights: byId("weights").textContent.trim() }),
  encode: (value) => ask("encode", value),
  reset: () => ask("reset"),
  read: (ids) => ask("read", ids),
};
finetale.ready.then(
  () => {
    byId("weights").remove();
    byId("write").disabled = false;
    say("ready");
  },
  (error) => say("failed", error.message),
);
