"use strict";

// The page: what a person types, the tokens that the model writes, and the likeliest others.

const RUNNERS_UP = 5;
const element = (id) => document.getElementById(id);
// To let the browser draw, and hear the Stop button.
const breathe = () => new Promise((resolve) => setTimeout(resolve));

/** Bytes of the base64 text in an element. */
function bytesIn(id) {
  const characters = atob(element(id).textContent.trim());
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** What lies in the page: facts, tokenizer, model. */
function unpack() {
  const facts = JSON.parse(element("facts-json").textContent);
  const file = (name) => JSON.parse(facts.files[name]);
  const tokenizer = new Tokenizer(file("tokenizer.json"));
  const model = new GPT2(file("config.json"), readSafetensors(bytesIn("weights").buffer));
  return { facts, tokenizer, model };
}

/** Ids of a prompt: the tokenizer's own in front, once; of an empty one what a document begins with. */
function promptIds({ facts, tokenizer }, text, leading = facts.leading_ids) {
  const ids = tokenizer.encode(text);
  const hasLeading = leading.every((id, i) => ids[i] === id);
  const whole = hasLeading ? ids : [...leading, ...ids];
  return whole.length ? whole : facts.start_ids;
}

/** The place of the largest number, the first of several. */
function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Ids of the `count` largest numbers, the largest first. */
function largestIds(values, count) {
  const ids = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
  return ids.slice(0, count);
}

/** The next id: the likeliest at temperature 0, else one drawn from the `topK` likeliest. */
function choose(logits, temperature, topK) {
  if (temperature === 0) return largest(logits);
  const ids = largestIds(logits, topK || logits.length);
  const shares = softmax(Float32Array.from(ids, (id) => logits[id] / temperature));
  let left = Math.random();
  for (let i = 0; i < ids.length; i++) {
    left -= shares[i];
    if (left < 0) return ids[i];
  }
  return ids[0];
}

/** Ids that the model writes after `ids`, one by one, with the logits each was chosen from. */
async function* write({ model }, ids, { temperature, topK, maxNewTokens, ends, isStopped }) {
  model.reset();
  let state;
  for (const id of ids) {
    state = model.read(id);
    await breathe();
    if (isStopped()) return;
  }
  for (let i = 0; i < maxNewTokens; i++) {
    const logits = model.logits(state);
    const id = choose(logits, temperature, topK);
    if (ends.includes(id)) return;
    yield { id, logits };
    if (model.length === model.context) return;
    state = model.read(id);
    await breathe();
    if (isStopped()) return;
  }
}

/** The likeliest ids after `ids`, past any end of text. */
async function likeliestIds(loaded, ids, maxNewTokens, isStopped) {
  const settings = { temperature: 0, topK: 0, maxNewTokens, ends: [], isStopped };
  const written = [];
  for await (const { id } of write(loaded, ids, settings)) written.push(id);
  return written;
}

/**
 * Whether this browser makes Python's tokens of the texts in the page, and goes on as it does; null
 * if it was stopped.
 */
async function check(loaded, isStopped) {
  let count = 0;
  for (const { text, ids, next_ids: nextIds } of loaded.facts.proof) {
    const shown = JSON.stringify(text);
    if (promptIds(loaded, text).join() !== ids.join()) return `${shown} has other tokens in Python`;
    const written = await likeliestIds(loaded, ids, nextIds.length, isStopped);
    if (isStopped()) return null;
    if (written.join() !== nextIds.join()) return `after ${shown} Python writes other tokens`;
    count += nextIds.length;
  }
  return `${count} of ${count} tokens are those that Python writes`;
}

class Page {
  constructor(loaded) {
    this.loaded = loaded;
    this.isWriting = false;
    this.isStopped = false;
    this.isChecked = false;
    this.spans = [];
    this.chosen = -1;
    element("form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.isWriting) this.isStopped = true;
      else this.start();
    });
    element("text").addEventListener("keydown", (event) => this.move(event));
    element("write").disabled = false;
    this.showFacts();
  }

  showFacts() {
    const { facts } = this.loaded;
    document.title = facts.name;
    element("name").textContent = facts.name;
    for (const [name, value] of facts.card) {
      const row = element("card").insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = value;
    }
    element("as-asked").hidden = !facts.asked;
  }

  async start() {
    const { facts, model } = this.loaded;
    const prompt = element("prompt").value;
    const asAsked = facts.asked && element("asked").checked;
    const [before, after] = asAsked ? facts.asked : ["", ""];
    const leading = asAsked && facts.is_chat ? [] : facts.leading_ids;
    const ids = promptIds(this.loaded, before + prompt + after, leading);
    if (!ids.length) return this.say("Type a few words first: the model goes on from them.");
    if (ids.length >= model.context) {
      return this.say(`The prompt has ${ids.length} tokens; the model reads ${model.context}.`);
    }
    element("text").textContent = "";
    delete element("text").dataset.done;
    this.spans = [];
    this.chosen = -1;
    if (!asAsked) this.add(prompt, "given");
    await this.run(ids);
  }

  async run(ids) {
    const settings = {
      temperature: element("temperature").valueAsNumber || 0,
      topK: Math.trunc(element("top-k").valueAsNumber) || 0,
      maxNewTokens: Math.trunc(element("max-new-tokens").valueAsNumber) || 1,
      ends: this.loaded.facts.eos_ids,
      isStopped: () => this.isStopped,
    };
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const began = performance.now();
    let count = 0;
    this.isWriting = true;
    this.isStopped = false;
    element("write").textContent = "Stop";
    this.say("Reading the prompt");
    for await (const { id, logits } of write(this.loaded, ids, settings)) {
      count += 1;
      this.addToken(id, logits, decoder);
      const rate = (1000 * count) / (performance.now() - began);
      this.say(`${count} tokens, ${rate.toFixed(0)} a second`);
    }
    this.isWriting = false;
    element("write").textContent = "Write";
    element("text").dataset.done = String(count);
    this.check();
  }

  /** While nobody wants a text; what is asked for comes first. */
  async check() {
    if (this.isChecked) return;
    const result = await check(this.loaded, () => this.isWriting);
    if (result === null) return;
    this.isChecked = true;
    element("check").textContent = result;
    element("check").dataset.done = "true";
  }

  addToken(id, logits, decoder) {
    const { tokenizer } = this.loaded;
    const span = this.add(decoder.decode(tokenizer.bytesOf(id), { stream: true }), "token");
    const shares = softmax(logits);
    const percent = (other) => `${(100 * shares[other]).toFixed(shares[other] < 0.1 ? 1 : 0)} %`;
    const line = (other) => `${JSON.stringify(tokenizer.shown(other))} ${percent(other)}`;
    span.title = [`${line(id)}`, "", ...largestIds(logits, RUNNERS_UP).map(line)].join("\n");
    span.dataset.id = id;
    const at = this.spans.push(span) - 1;
    span.addEventListener("click", () => this.choose(at));
  }

  add(text, kind) {
    const span = document.createElement("span");
    span.textContent = text;
    span.className = kind;
    element("text").append(span);
    return span;
  }

  /** The arrow keys walk from token to token. */
  move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !this.spans.length) return;
    event.preventDefault();
    this.choose(Math.min(Math.max(this.chosen + step, 0), this.spans.length - 1));
  }

  choose(at) {
    this.spans.forEach((span, i) => span.classList.toggle("chosen", i === at));
    this.chosen = at;
    const [written, , ...others] = this.spans[at].title.split("\n");
    element("readout").textContent = `${written} was written; likeliest: ${others.join(", ")}`;
  }

  say(text) {
    element("status").textContent = text;
  }
}

try {
  const page = new Page(unpack());
  page.say("Ready");
  page.check();
} catch (error) {
  element("status").textContent = `This browser cannot run the model: ${error.message}`;
}
