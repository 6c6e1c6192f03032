/* Byte-level BPE, the tokenizer of GPT-2: text to token ids, and token ids to bytes. */

/* GPT-2's rule to cut text, with Unicode's white space: JavaScript's \s differs from it in U+0085 and U+FEFF. */
const PIECES =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
const MOST_REMEMBERED = 20000;

/* Vocabularies write each byte as one visible character. Return the character of each byte. */
function byteCharacters() {
  const visible = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : next++));
}

class Tokenizer {
  /* rules: vocabulary (tokens by id, null for a gap), merges (pairs by rank, each "left right"), added ({id: text}),
     normalizer (a form of Unicode, or null), ignoreMerges (a piece that is a token is not merged). */
  constructor(rules) {
    this.rules = rules;
    this.characters = byteCharacters();
    this.byteOf = new Map(this.characters.map((character, byte) => [character, byte]));
    this.idOf = new Map();
    rules.vocabulary.forEach((token, id) => token !== null && this.idOf.set(token, id));
    this.rankOf = new Map(rules.merges.map((pair, rank) => [pair, rank]));
    this.added = Object.entries(rules.added).map(([id, text]) => [text, Number(id)]);
    this.added.sort((one, other) => other[0].length - one[0].length);
    this.bytesOfAdded = new Map(this.added.map(([text, id]) => [id, new TextEncoder().encode(text)]));
    this.remembered = new Map();
  }

  encode(text) {
    const ids = [];
    let start = 0;
    for (let at = 0; at < text.length; ) {
      const found = this.added.find(([token]) => text.startsWith(token, at));
      if (found) {
        this.encodePlain(text.slice(start, at), ids);
        ids.push(found[1]);
        at += found[0].length;
        start = at;
      } else {
        at += 1;
      }
    }
    this.encodePlain(text.slice(start), ids);
    return ids;
  }

  encodePlain(text, ids) {
    const form = this.rules.normalizer;
    for (const [piece] of (form ? text.normalize(form) : text).matchAll(PIECES)) {
      let found = this.remembered.get(piece);
      if (!found) {
        found = this.merge(Array.from(new TextEncoder().encode(piece), (byte) => this.characters[byte]));
        if (this.remembered.size >= MOST_REMEMBERED) this.remembered.clear();
        this.remembered.set(piece, found);
      }
      for (const id of found) ids.push(id);
    }
  }

  /* Join the pair of the lowest rank until no pair has one; return the ids. */
  merge(parts) {
    const whole = parts.join("");
    if (this.rules.ignoreMerges && this.idOf.has(whole)) return [this.idOf.get(whole)];
    while (parts.length > 1) {
      let lowest = Infinity;
      let place = -1;
      for (let at = 0; at + 1 < parts.length; at++) {
        const rank = this.rankOf.get(`${parts[at]} ${parts[at + 1]}`);
        if (rank < lowest) {
          lowest = rank;
          place = at;
        }
      }
      if (place < 0) break;
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
    return parts.filter((part) => this.idOf.has(part)).map((part) => this.idOf.get(part));
  }

  /* Return the UTF-8 bytes of a token; a character can be in several tokens. */
  bytes(id) {
    const added = this.bytesOfAdded.get(id);
    if (added) return added;
    return Uint8Array.from(this.rules.vocabulary[id] ?? "", (character) => this.byteOf.get(character));
  }
}
