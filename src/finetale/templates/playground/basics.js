/* Elements, words in the language of the reader, and small things that the browser does. */

/** Return the element with an id. */
const byId = id => document.getElementById(id);

/** Build an element. `text` becomes text, never markup; `on…` are listeners; others are attributes. */
function build(tag, values = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Build a button with words. */
const button = (key, onclick, ...values) => build("button", {type: "button", text: say(key, ...values), onclick});

let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** Return the words of a key; {0}, {1} … stand for the values. */
function say(key, ...values) {
  return WORDS[language][key].replace(/\{(\d)\}/g, (_, number) => values[number]);
}

/** Write the words of the page's fixed parts. */
function translate() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-say-label]")) element.ariaLabel = say(element.dataset.sayLabel);
  for (const element of document.querySelectorAll("[data-say-placeholder]")) element.placeholder = say(element.dataset.sayPlaceholder);
  const other = byId("language");
  other.textContent = say("language");
  other.lang = language === "zh" ? "en" : "zh-Hans";
}

/** Return a number as people write it. */
const figure = (value, digits = 0) =>
  new Intl.NumberFormat(language, {minimumFractionDigits: digits, maximumFractionDigits: digits}).format(value);

/** Show a sentence below the text. Screen readers read it, so it changes twice per text and not per token. */
function announce(sentence) {
  byId("status").textContent = sentence;
}

/** Show a sentence above the text, with buttons. It stays until it is closed or another one comes. */
function notify(sentence, actions = [], isBad = false) {
  const notice = byId("notice");
  notice.classList.toggle("bad", isBad);
  notice.querySelector("p").textContent = sentence;
  const close = button("close", () => { notice.hidden = true; });
  notice.querySelector(".actions").replaceChildren(
    ...actions.map(([key, act]) => button(key, () => { notice.hidden = true; act(); })), close);
  notice.hidden = false;
}

/** Close the sentence above the text. */
const hush = () => { byId("notice").hidden = true; };

/** Return whether a key press belongs to an input method, such as the choice of a Chinese character. */
const isComposing = event => event.isComposing || event.keyCode === 229;

/** Copy a text. */
async function copy(text, words = "copied") {
  try {
    await navigator.clipboard.writeText(text);
    announce(say(words));
  } catch {
    // Browsers offer no clipboard to pages that came from another machine without TLS.
    const area = document.body.appendChild(build("textarea", {class: "unseen", "aria-hidden": "true"}));
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    announce(say(done ? words : "copy-failed"));
  }
}

/** Offer a text as a file to save. */
function save(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], {type: kind}));
  build("a", {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Wait, unless the signal aborts. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, {once: true});
  });
}

/** Return a function that calls `act` once there was no call for some time. */
function settled(act, milliseconds) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(act, milliseconds); };
}

/** Scroll down to the end of a growing text, unless the reader has scrolled away from it by `most` pixels. */
function follow(element, most = 240) {
  const hidden = element.getBoundingClientRect().bottom + 16 - byId("act").getBoundingClientRect().top;
  if (hidden > 0 && hidden < most) window.scrollBy(0, hidden);
}
