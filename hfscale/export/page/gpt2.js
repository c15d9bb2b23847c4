"use strict";

// GPT-2's forward pass on plain arrays of float32, a token at a time, with a key/value cache.

/** Tensors of a safetensors file by name: {shape, values: Float32Array}. */
function readSafetensors(buffer) {
  const headerBytes = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, headerBytes)));
  const tensors = new Map();
  delete header.__metadata__;
  const halves = halfTable();
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    const [begin, end] = offsets.map((offset) => 8 + headerBytes + offset);
    const bytes = buffer.slice(begin, end);
    tensors.set(name, { shape, values: dtype === "F16" ? widened(bytes, halves) : new Float32Array(bytes) });
  }
  return tensors;
}

/** Each float16 as float32, exactly. */
function halfTable() {
  return Float32Array.from({ length: 1 << 16 }, (_, bits) => half(bits));
}

function widened(bytes, table) {
  const numbers = new Uint16Array(bytes);
  const values = new Float32Array(numbers.length);
  for (let i = 0; i < numbers.length; i++) values[i] = table[numbers[i]];
  return values;
}

/** IEEE 754: a sign, 5 bits of exponent, 10 of fraction. */
function half(bits) {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** (inputs, outputs), as GPT-2 keeps its weights, to (outputs, inputs). */
function transposed({ shape: [rows, columns], values }) {
  const turned = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      turned[column * rows + row] = values[row * columns + column];
    }
  }
  return turned;
}

/** outputs[i] = weights[i] . inputs + bias[i], for weights of (outputs, inputs). */
function multiply(weights, inputs, bias, outputs) {
  const width = inputs.length;
  for (let row = 0; row < outputs.length; row++) {
    outputs[row] = dot(weights, row * width, inputs) + (bias ? bias[row] : 0);
  }
  return outputs;
}

/** Four sums at once: each would wait for itself, and that takes three times as long. */
function dot(weights, begin, inputs) {
  const width = inputs.length;
  let [a, b, c, d] = [0, 0, 0, 0];
  let i = 0;
  for (; i + 3 < width; i += 4) {
    a += weights[begin + i] * inputs[i];
    b += weights[begin + i + 1] * inputs[i + 1];
    c += weights[begin + i + 2] * inputs[i + 2];
    d += weights[begin + i + 3] * inputs[i + 3];
  }
  for (; i < width; i++) a += weights[begin + i] * inputs[i];
  return a + b + c + d;
}

function layerNorm(inputs, { weight, bias }, epsilon) {
  const width = inputs.length;
  const mean = inputs.reduce((sum, value) => sum + value, 0) / width;
  const variance = inputs.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width;
  const scale = 1 / Math.sqrt(variance + epsilon);
  return inputs.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
}

/** GELU by its tanh formula, in place. */
function gelu(values) {
  for (let i = 0; i < values.length; i++) {
    const x = values[i];
    values[i] = 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
  }
  return values;
}

function addTo(sums, values) {
  for (let i = 0; i < sums.length; i++) sums[i] += values[i];
}

class GPT2 {
  /** `config`: that of transformers; `tensors`: of `readSafetensors`. */
  constructor(config, tensors) {
    const values = (name) => tensors.get(name).values;
    const norm = (name) => ({ weight: values(`${name}.weight`), bias: values(`${name}.bias`) });
    const linear = (name) => ({
      weight: transposed(tensors.get(`${name}.weight`)),
      bias: values(`${name}.bias`),
    });
    this.width = config.n_embd;
    this.numHeads = config.n_head;
    this.context = config.n_positions;
    this.vocabSize = config.vocab_size;
    this.epsilon = config.layer_norm_epsilon;
    this.tokens = values("transformer.wte.weight");
    this.positions = values("transformer.wpe.weight");
    this.head = tensors.has("lm_head.weight") ? values("lm_head.weight") : this.tokens;
    this.lastNorm = norm("transformer.ln_f");
    this.layers = Array.from({ length: config.n_layer }, (_, i) => ({
      firstNorm: norm(`transformer.h.${i}.ln_1`),
      attention: linear(`transformer.h.${i}.attn.c_attn`),
      attended: linear(`transformer.h.${i}.attn.c_proj`),
      secondNorm: norm(`transformer.h.${i}.ln_2`),
      inner: linear(`transformer.h.${i}.mlp.c_fc`),
      outer: linear(`transformer.h.${i}.mlp.c_proj`),
      keys: new Float32Array(this.context * this.width),
      values: new Float32Array(this.context * this.width),
    }));
    this.length = 0; // tokens in the cache
  }

  /** Forget all tokens. */
  reset() {
    this.length = 0;
  }

  /** Read one more token; returns the state behind it, for `logits`. */
  read(id) {
    const { width } = this;
    const state = this.tokens.slice(id * width, (id + 1) * width);
    addTo(state, this.positions.subarray(this.length * width, (this.length + 1) * width));
    for (const layer of this.layers) {
      addTo(state, this.attend(layer, layerNorm(state, layer.firstNorm, this.epsilon)));
      addTo(state, this.think(layer, layerNorm(state, layer.secondNorm, this.epsilon)));
    }
    this.length += 1;
    return state;
  }

  /** For each token of the vocabulary, how much it is expected after `state`. */
  logits(state) {
    const normed = layerNorm(state, this.lastNorm, this.epsilon);
    return multiply(this.head, normed, null, new Float32Array(this.vocabSize));
  }

  think(layer, inputs) {
    const { inner, outer } = layer;
    const hidden = new Float32Array(inner.bias.length);
    gelu(multiply(inner.weight, inputs, inner.bias, hidden));
    return multiply(outer.weight, hidden, outer.bias, new Float32Array(this.width));
  }

  attend(layer, inputs) {
    const { width } = this;
    const { attention, attended } = layer;
    const parts = multiply(attention.weight, inputs, attention.bias, new Float32Array(3 * width));
    layer.keys.set(parts.subarray(width, 2 * width), this.length * width);
    layer.values.set(parts.subarray(2 * width), this.length * width);
    const mixed = new Float32Array(width);
    const headWidth = width / this.numHeads;
    for (let begin = 0; begin < width; begin += headWidth) {
      const weights = this.attentionWeights(layer.keys, parts, begin, headWidth);
      weights.forEach((weight, place) => {
        for (let i = begin; i < begin + headWidth; i++) {
          mixed[i] += weight * layer.values[place * width + i];
        }
      });
    }
    return multiply(attended.weight, mixed, attended.bias, new Float32Array(width));
  }

  /** How much the newest token looks at each token up to itself, with the head at `begin`. */
  attentionWeights(keys, queries, begin, headWidth) {
    const scores = new Float32Array(this.length + 1);
    for (let place = 0; place <= this.length; place++) {
      let sum = 0;
      for (let i = begin; i < begin + headWidth; i++) sum += queries[i] * keys[place * this.width + i];
      scores[place] = sum / Math.sqrt(headWidth);
    }
    return softmax(scores);
  }
}

function softmax(scores) {
  const largest = scores.reduce((most, score) => Math.max(most, score), -Infinity);
  const exponents = scores.map((score) => Math.exp(score - largest));
  const sum = exponents.reduce((total, exponent) => total + exponent, 0);
  return exponents.map((exponent) => exponent / sum);
}
