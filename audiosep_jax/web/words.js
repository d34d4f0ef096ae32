// Embeds a sentence as audiosep_jax/encoders/static.py does: the mean of the vectors of its word
// pieces, at length 1. `tokens` maps a piece to its row of the table.

// Words and punctuation marks, as BERT's normaliser and pre-tokenizer make them.
function wordsOf(text) {
  const spaced = text
    .replace(/[\t\n\r]/gu, " ")
    .replace(/[\p{Cc}\p{Cf}\p{Co}\ufffd]/gu, "")
    .replace(/[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{f900}-\u{faff}\u{2f800}-\u{2fa1f}]/gu, " $& ")
    .normalize("NFD")
    .replace(/\p{Mn}/gu, "");
  // Letter by letter: a sigma at the end of a word is like any other.
  const lower = Array.from(spaced, (letter) => letter.toLowerCase()).join("");
  return lower.replace(/[\p{P}!-/:-@[-`{-~]/gu, " $& ").split(/\p{White_Space}+/u).filter(Boolean);
}

export class Words {
  constructor(about, bytes) {
    Object.assign(this, about);
    this.table = new { int8: Int8Array, float32: Float32Array }[about.dtype](bytes);
    const specials = Object.keys(about.special).map((x) => x.replace(/[^\w]/g, "\\$&"));
    this.special_tokens = new RegExp(`(${specials.join("|") || "(?!)"})`);
  }

  // The longest pieces from the left; none if a part of the word is no piece.
  pieces(word) {
    const letters = Array.from(word), found = [];
    if (letters.length > this.longest) return [];
    for (let start = 0, end; start < letters.length; start = end) {
      const prefix = start ? this.prefix : "";
      for (end = letters.length; end > start; end--) {
        const piece = prefix + letters.slice(start, end).join("");
        if (Object.hasOwn(this.tokens, piece)) { found.push(this.tokens[piece]); break; }
      }
      if (end === start) return [];
    }
    return found;
  }

  rows(sentence) {
    const parts = sentence.toWellFormed().split(this.special_tokens);
    const rows = parts.flatMap((part, place) =>
      place % 2 ? [this.special[part]] : wordsOf(part).flatMap((word) => this.pieces(word)));
    return rows.filter((row) => row !== this.unknown);
  }

  embed(sentence) {
    const total = new Float64Array(this.features);
    for (const row of this.rows(sentence))
      for (let i = 0; i < total.length; i++) total[i] += this.table[row * total.length + i];
    const length = Math.sqrt(total.reduce((sum, x) => sum + x * x, 0));
    if (!(length > 0)) throw new Error(`The text encoder knows no word of “${sentence}”.`);
    return Float32Array.from(total, (x) => x / length);
  }
}
