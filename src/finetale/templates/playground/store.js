/* What the page keeps: a draft in this tab, and links that hold the text. All that is read back is checked. */

const DRAFT = "finetale";
const MAX_LINK = 8000;
const MAX_UNPACKED = 2 ** 20;

const isText = value => typeof value === "string";
const isCount = value => Number.isInteger(value) && value >= 0;

/** Return a take with the fields of `raw` that are valid. Nothing writes to a stored take any more. */
function saneTake(raw) {
  const take = newTake(isText(raw.model) ? raw.model : "", isCount(raw.seed) ? raw.seed : 0);
  for (const name of ["text", "reason", "error"]) if (isText(raw[name])) take[name] = raw[name];
  for (const name of ["tokens", "seconds"]) if (Number.isFinite(raw[name])) take[name] = raw[name];
  take.state = ["done", "failed"].includes(raw.state) ? raw.state : "stopped";
  return take;
}

/** Return a message with the fields of `raw` that are valid; null if there are too few. */
function saneMessage(raw) {
  if (raw?.role === "user" && isText(raw.text)) return {role: "user", text: raw.text};
  if (raw?.role !== "assistant" || !Array.isArray(raw.takes) || !raw.takes.length) return null;
  const takes = raw.takes.filter(take => take && typeof take === "object").map(saneTake);
  const within = value => isCount(value) && value < takes.length;
  return takes.length ? {role: "assistant", takes, from: within(raw.from) ? raw.from : 0, chosen: within(raw.chosen) ? raw.chosen : null} : null;
}

/** Return the state of the page with the fields of `raw` that are valid. */
function sane(raw) {
  const from = raw && typeof raw === "object" ? raw : {};
  const {desk = {}, chat = {}} = from;
  const settings = Object.entries(from.settings ?? {}).filter(([name, value]) => FIELDS.includes(name) && isText(value));
  const text = isText(desk?.text) ? desk.text : "";
  const marks = Array.isArray(desk?.marks) ? desk.marks : [];
  return {
    mode: ["desk", "chat"].includes(from.mode) ? from.mode : "",
    model: isText(from.model) ? from.model : "",
    compare: typeof from.compare === "boolean" ? from.compare : null,
    other: isText(from.other) ? from.other : "",
    language: ["en", "zh"].includes(from.language) ? from.language : "",
    settings: Object.fromEntries(settings),
    desk: {text, marks: marks.filter(pair => Array.isArray(pair) && pair.every(isCount) && pair[0] < pair[1] && pair[1] <= text.length)},
    chat: {
      system: isText(chat?.system) ? chat.system : "",
      draft: isText(chat?.draft) ? chat.draft : "",
      messages: (Array.isArray(chat?.messages) ? chat.messages : []).map(saneMessage).filter(Boolean),
    },
  };
}

/** Keep the state in this tab; it survives a reload. */
function keepDraft(state) {
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(state));
    return true;
  } catch {
    return false;
  }
}

/** Return the state that was kept in this tab. */
function readDraft() {
  try {
    return sane(JSON.parse(sessionStorage.getItem(DRAFT)));
  } catch {
    return sane(null);
  }
}

/** Return whether a state has something that somebody typed. */
const hasText = ({desk, chat}) => Boolean(desk.text || chat.system || chat.draft || chat.messages.length);

/** Return a link to the state. It is in the fragment, which browsers do not send. */
async function linkOf(state) {
  const stream = new Blob([JSON.stringify(state)]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const letters = Array.from(bytes, byte => String.fromCharCode(byte)).join("");
  const word = btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `${location.href.split("#")[0]}#s=${word}`;
}

/** Return the state of a link's fragment. */
async function stateOf(fragment) {
  try {
    const letters = atob(fragment.slice(3).replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(letters, letter => letter.charCodeAt(0));
    const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"))
      .pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      if (text.length > MAX_UNPACKED) throw new RangeError("too large");
    }
    return sane(JSON.parse(text));
  } catch {
    throw new Failure("link-bad");
  }
}
