"use strict";

// Text to token ids and back, as a tokenizer.json says: byte-level BPE, or a token per character.

// GPT-2's split into words. White space is Unicode's, which JavaScript's \s is not.
const WORDS = new RegExp(
  "'(?:s|t|re|ve|m|ll|d)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
    "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
  "gu",
);

/** The character that stands for each byte in the tokens of a byte-level BPE. */
function byteCharacters() {
  const isShown = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(isShown(byte) ? byte : next++),
  );
}

class Tokenizer {
  /** `state`: the content of a tokenizer.json. */
  constructor(state) {
    this.isBytes = state.model.type === "BPE";
    this.ids = new Map(Object.entries(state.model.vocab));
    this.texts = new Map(Array.from(this.ids, ([token, id]) => [id, token]));
    this.unknown = this.ids.get(state.model.unk_token);
    this.added = new Map(state.added_tokens.map(({ content, id }) => [content, id]));
    this.addedTexts = new Map(state.added_tokens.map(({ content, id }) => [id, content]));
    this.specials = new Set(state.added_tokens.filter((t) => t.special).map(({ id }) => id));
    // Of two that begin at one place the longer one counts.
    const longestFirst = [...this.added.keys()].sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
    this.addedPattern = escaped.length ? new RegExp(`(${escaped.join("|")})`, "u") : /(?!)/u;
    this.ranks = new Map((state.model.merges || []).map((pair, rank) => [pair.join("\n"), rank]));
    this.characters = byteCharacters();
    this.bytes = new Map(this.characters.map((character, byte) => [character, byte]));
    this.seen = new Map(); // ids of words
  }

  encode(text) {
    const ids = [];
    for (const part of text.split(this.addedPattern)) {
      if (this.added.has(part)) ids.push(this.added.get(part));
      else if (part) ids.push(...this.encodePlain(part));
    }
    return ids;
  }

  encodePlain(text) {
    if (!this.isBytes) return Array.from(text, (c) => this.ids.get(c) ?? this.unknown);
    return (text.match(WORDS) || []).flatMap((word) => {
      if (!this.seen.has(word)) this.seen.set(word, this.merge(word));
      return this.seen.get(word);
    });
  }

  /** Ids of a word: of all neighbours that are one token, the pair learned first is joined. */
  merge(word) {
    let parts = Array.from(new TextEncoder().encode(word), (byte) => this.characters[byte]);
    for (;;) {
      const ranks = parts.slice(1).map((part, i) => this.ranks.get(`${parts[i]}\n${part}`));
      const best = ranks.reduce((least, rank) => Math.min(least, rank ?? Infinity), Infinity);
      if (best === Infinity) return parts.map((part) => this.ids.get(part));
      const at = ranks.indexOf(best);
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /** Bytes of the text of a token. */
  bytesOf(id) {
    const added = this.addedTexts.get(id);
    if (added !== undefined) return new TextEncoder().encode(added);
    const token = this.texts.get(id) ?? "";
    if (!this.isBytes) return new TextEncoder().encode(token);
    return Uint8Array.from(token, (character) => this.bytes.get(character));
  }

  decode(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const pieces = ids.map((id) => decoder.decode(this.bytesOf(id), { stream: true }));
    return pieces.join("") + decoder.decode();
  }

  /** A token as a person reads it, by itself. */
  shown(id) {
    return this.decode([id]);
  }
}
