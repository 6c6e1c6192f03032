/* Choose the next token. */

/* Return a function that gives numbers from 0 to 1; the same seed gives the same numbers (Marsaglia's xorshift32). */
function randomNumbers(seed) {
  let state = (Math.imul(seed, 2654435761) ^ 0x9e3779b9) | 0 || 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 4294967296;
  };
  for (let round = 0; round < 16; round++) next(); // near seeds begin alike
  return next;
}

/* Return the id of the largest score. */
function likeliest(scores) {
  let best = 0;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  return best;
}

/* Return a token: temperature first, then the top_k most likely, then those that make up top_p of the probability. */
function choose(scores, { temperature, top_k, top_p }, random) {
  const best = likeliest(scores);
  if (temperature === 0) return best;
  const shares = new Float64Array(scores.length);
  for (let id = 0; id < scores.length; id++) shares[id] = Math.exp((scores[id] - scores[best]) / temperature);
  let ids = Uint32Array.from(shares.keys());
  if (top_k > 0 || top_p < 1) ids.sort((one, other) => shares[other] - shares[one] || one - other);
  if (top_k > 0) ids = ids.subarray(0, top_k);
  const whole = ids.reduce((sum, id) => sum + shares[id], 0);
  let kept = whole;
  if (top_p < 1) {
    kept = 0;
    let number = 0;
    while (number < ids.length && kept < top_p * whole) kept += shares[ids[number++]];
    ids = ids.subarray(0, number);
  }
  let left = random() * kept;
  for (const id of ids) {
    left -= shares[id];
    if (left < 0) return id;
  }
  return ids[0];
}
