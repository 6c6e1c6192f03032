/* GPT-2 in plain JavaScript, with a cache of keys and values. Weights are in 8 bits with a scale for each row. */

const TOGETHER = 64; // most tokens that are read in one pass

/* Return the tensors of the file: matrices as {rows, columns, values, scales}, vectors as Float32Array. */
function tensorsOf(buffer, places) {
  const found = {};
  for (const [name, { shape, at }] of Object.entries(places)) {
    if (shape.length === 1) {
      found[name] = new Float32Array(buffer, at, shape[0]);
    } else {
      const [rows, columns] = shape;
      const scales = new Float32Array(buffer, at, rows);
      found[name] = { rows, columns, scales, values: new Int8Array(buffer, at + 4 * rows, rows * columns) };
    }
  }
  return found;
}

/* out (count, rows) = x (count, columns) · matrixᵀ + bias. Four tokens share each read of a weight. */
function multiply(matrix, x, count, bias, out) {
  const { rows, columns, values, scales } = matrix;
  for (let row = 0; row < rows; row++) {
    const start = row * columns;
    const scale = scales[row];
    const added = bias ? bias[row] : 0;
    let token = 0;
    for (; token + 4 <= count; token += 4) {
      const first = token * columns;
      const second = first + columns;
      const third = second + columns;
      const fourth = third + columns;
      let a = 0;
      let b = 0;
      let c = 0;
      let d = 0;
      for (let at = 0; at < columns; at++) {
        const weight = values[start + at];
        a += weight * x[first + at];
        b += weight * x[second + at];
        c += weight * x[third + at];
        d += weight * x[fourth + at];
      }
      const place = token * rows + row;
      out[place] = a * scale + added;
      out[place + rows] = b * scale + added;
      out[place + 2 * rows] = c * scale + added;
      out[place + 3 * rows] = d * scale + added;
    }
    for (; token < count; token++) {
      out[token * rows + row] = dot(values, start, x, token * columns, columns) * scale + added;
    }
  }
}

/* Return the product of two pieces of arrays. Four sums let the processor work on several products at once. */
function dot(one, start, other, begin, length) {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  let at = 0;
  for (; at + 4 <= length; at += 4) {
    a += one[start + at] * other[begin + at];
    b += one[start + at + 1] * other[begin + at + 1];
    c += one[start + at + 2] * other[begin + at + 2];
    d += one[start + at + 3] * other[begin + at + 3];
  }
  for (; at < length; at++) a += one[start + at] * other[begin + at];
  return a + b + (c + d);
}

function normalise(x, count, weight, bias, epsilon, out) {
  const width = weight.length;
  for (let token = 0; token < count; token++) {
    const start = token * width;
    let sum = 0;
    for (let at = 0; at < width; at++) sum += x[start + at];
    const mean = sum / width;
    let squares = 0;
    for (let at = 0; at < width; at++) squares += (x[start + at] - mean) ** 2;
    const factor = 1 / Math.sqrt(squares / width + epsilon);
    for (let at = 0; at < width; at++) out[start + at] = (x[start + at] - mean) * factor * weight[at] + bias[at];
  }
}

/* Abramowitz and Stegun 7.1.26; the error is below 2e-7. */
function errorFunction(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const ACTIVATIONS = {
  tanh: (x) => 0.5 * x * (1 + Math.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
  erf: (x) => 0.5 * x * (1 + errorFunction(x / Math.SQRT2)),
  relu: (x) => Math.max(0, x),
};

class Gpt2 {
  /* shape: layers, heads, width, inner, context, epsilon, activation. */
  constructor(shape, tensors) {
    this.shape = shape;
    this.tensors = tensors;
    this.head = tensors.head ?? tensors.tokens;
    const { layers, width, inner, context } = shape;
    const space = (size) => new Float32Array(TOGETHER * size);
    this.keys = Array.from({ length: layers }, () => new Float32Array(context * width));
    this.values = Array.from({ length: layers }, () => new Float32Array(context * width));
    this.x = space(width);
    this.normal = space(width);
    this.mixed = space(width);
    this.out = space(width);
    this.three = space(3 * width);
    this.inner = space(inner);
    this.weights = new Float32Array(context);
    this.text = [];
  }

  /* Forget all but the first tokens of the text. */
  cut(length) {
    this.text.length = Math.min(length, this.text.length);
  }

  /* Append tokens, at most TOGETHER; return the scores after the last one, or after each, (tokens, vocabulary). */
  read(ids, after = "last") {
    const { layers, width, epsilon, activation } = this.shape;
    const { tensors, x, normal, mixed, out, three, inner } = this;
    const count = ids.length;
    const seen = this.text.length;
    if (count < 1 || count > TOGETHER || seen + count > this.shape.context) throw new RangeError("too many tokens");
    ids.forEach((id, token) => this.embed(id, seen + token, token * width));
    for (let layer = 0; layer < layers; layer++) {
      const part = (name) => tensors[`${layer}.${name}`];
      normalise(x, count, part("normal1.weight"), part("normal1.bias"), epsilon, normal);
      multiply(part("attention.weight"), normal, count, part("attention.bias"), three);
      this.attend(layer, seen, count);
      multiply(part("project.weight"), mixed, count, part("project.bias"), out);
      for (let at = 0; at < count * width; at++) x[at] += out[at];
      normalise(x, count, part("normal2.weight"), part("normal2.bias"), epsilon, normal);
      multiply(part("inner.weight"), normal, count, part("inner.bias"), inner);
      const activate = ACTIVATIONS[activation];
      for (let at = 0; at < count * this.shape.inner; at++) inner[at] = activate(inner[at]);
      multiply(part("outer.weight"), inner, count, part("outer.bias"), out);
      for (let at = 0; at < count * width; at++) x[at] += out[at];
    }
    this.text.push(...ids);
    normalise(x, count, tensors["normal.weight"], tensors["normal.bias"], epsilon, normal);
    const asked = after === "last" ? 1 : count;
    const scores = new Float32Array(asked * this.head.rows);
    multiply(this.head, normal.subarray((count - asked) * width), asked, null, scores);
    return scores;
  }

  embed(id, position, place) {
    const { tokens, positions } = this.tensors;
    const { width } = this.shape;
    for (let at = 0; at < width; at++) {
      this.x[place + at] =
        tokens.values[id * width + at] * tokens.scales[id] +
        positions.values[position * width + at] * positions.scales[position];
    }
  }

  /* Store the keys and values of new tokens; set `mixed` to what each token takes from those before it and itself. */
  attend(layer, seen, count) {
    const { heads, width } = this.shape;
    const { three, mixed, weights } = this;
    const keys = this.keys[layer];
    const values = this.values[layer];
    const size = width / heads;
    const factor = 1 / Math.sqrt(size);
    for (let token = 0; token < count; token++) {
      const from = 3 * width * token;
      keys.set(three.subarray(from + width, from + 2 * width), (seen + token) * width);
      values.set(three.subarray(from + 2 * width, from + 3 * width), (seen + token) * width);
    }
    mixed.fill(0, 0, count * width);
    for (let token = 0; token < count; token++) {
      const length = seen + token + 1;
      for (let head = 0; head < heads; head++) {
        const offset = head * size;
        let largest = -Infinity;
        for (let at = 0; at < length; at++) {
          weights[at] = dot(three, 3 * width * token + offset, keys, at * width + offset, size) * factor;
          largest = Math.max(largest, weights[at]);
        }
        let sum = 0;
        for (let at = 0; at < length; at++) {
          weights[at] = Math.exp(weights[at] - largest);
          sum += weights[at];
        }
        const place = token * width + offset;
        for (let at = 0; at < length; at++) {
          const share = weights[at] / sum;
          const start = at * width + offset;
          for (let each = 0; each < size; each++) mixed[place + each] += share * values[start + each];
        }
      }
    }
  }
}
