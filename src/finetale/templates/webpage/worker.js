/* The worker that holds the model, so that the page stays responsive. A message is {id, call, values}; the answer is
   {id, result} or {id, error}, and `write` sends {id, piece} for each piece of text before it. */

let model;
let tokenizer;
let about;
let stopping = false;

function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const decoded = atob(text);
  const found = new Uint8Array(decoded.length);
  for (let at = 0; at < decoded.length; at++) found[at] = decoded.charCodeAt(at);
  return found;
}

function base64OfBytes(bytes) {
  const parts = [];
  for (let at = 0; at < bytes.length; at += 32768) {
    parts.push(String.fromCharCode.apply(null, bytes.subarray(at, at + 32768)));
  }
  return btoa(parts.join(""));
}

/* Let messages in: without this, a stop would wait for the end of the text. */
const doors = new MessageChannel();
let goOn;
doors.port1.onmessage = () => goOn();
function pause() {
  return new Promise((resolve) => {
    goOn = resolve;
    doors.port2.postMessage(null);
  });
}

/* Return the ids that the model reads of a text: what comes before each text, and as much of the end as there is room
   for. An empty text is beginning-of-text, because a model needs at least one token. */
function promptOf(text, room) {
  let ids = [...about.lead, ...tokenizer.encode(text)];
  if (ids.length === 0) ids = [about.begin];
  const context = about.shape.context;
  return ids.length <= context - room ? ids : ids.slice(-Math.max(context - room, context >> 1));
}

/* Read a prompt from the first token that differs from the text before; return the scores after it. */
async function readPrompt(ids) {
  let same = 0;
  while (same < ids.length - 1 && ids[same] === model.text[same]) same += 1;
  model.cut(same);
  let scores;
  for (let at = same; at < ids.length && !stopping; at += TOGETHER) {
    scores = model.read(ids.slice(at, at + TOGETHER));
    await pause();
  }
  return scores;
}

const calls = {
  load(page) {
    about = page.about;
    tokenizer = new Tokenizer(about.tokenizer);
    model = new Gpt2(about.shape, tensorsOf(bytesOfBase64(page.weights).buffer, about.tensors));
  },

  encode: (text) => tokenizer.encode(text),

  reset() {
    model.cut(0);
  },

  read(ids) {
    const parts = [];
    for (let at = 0; at < ids.length; at += TOGETHER) parts.push(model.read(ids.slice(at, at + TOGETHER), "each"));
    return parts.map((scores) => base64OfBytes(new Uint8Array(scores.buffer)));
  },

  stop() {
    stopping = true;
  },

  async write({ text, settings }, send) {
    stopping = false;
    const ids = promptOf(text, settings.length);
    const room = Math.min(settings.length, about.shape.context - ids.length);
    const random = randomNumbers(settings.seed);
    const characters = new TextDecoder();
    const begin = performance.now();
    let scores = await readPrompt(ids);
    const prompted = performance.now();
    let count = 0;
    let ended = false;
    while (!stopping) {
      scores = scores.subarray(0, about.size);
      for (const id of about.forbidden) scores[id] = -Infinity;
      const id = choose(scores, settings, random);
      ended = about.ends.includes(id);
      if (ended) break;
      count += 1;
      send(characters.decode(tokenizer.bytes(id), { stream: true }));
      if (count >= room) break;
      scores = model.read([id]);
      await pause();
    }
    send(characters.decode());
    const now = performance.now();
    const rate = count > 1 ? (1000 * (count - 1)) / (now - prompted) : null;
    return { count, ended, stopped: stopping, seconds: (now - begin) / 1000, rate };
  },
};

onmessage = async ({ data: { id, call, values } }) => {
  try {
    const result = await calls[call](values, (piece) => postMessage({ id, piece }));
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: `${error}` });
  }
};
