// WAV files and spectrograms.

const WINDOW = 1024, HOP = 512, COLUMNS = 800;
export const ROWS = 120;
const RANGE_DB = 80, FLOOR_DB = -120;
const COLOURS = [[0, 0, 4], [60, 15, 110], [150, 40, 105], [235, 105, 50], [252, 255, 164]];
const HANN = Float64Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));

// One channel from several of the same length.
export const mean = (rows) =>
  rows[0].map((_, i) => rows.reduce((sum, row) => sum + row[i], 0) / rows.length);

// A WAV file of 32-bit floats; `parts` are blobs of interleaved samples.
export function wav(parts, channels, rate) {
  const bytes = parts.reduce((sum, part) => sum + part.size, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (place, letters) => [...letters].forEach((x, i) => head.setUint8(place + i, x.charCodeAt(0)));
  text(0, "RIFF"); head.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt ");
  head.setUint32(16, 16, true); head.setUint16(20, 3, true); head.setUint16(22, channels, true);
  head.setUint32(24, rate, true); head.setUint32(28, rate * channels * 4, true);
  head.setUint16(32, channels * 4, true); head.setUint16(34, 32, true);
  text(36, "data"); head.setUint32(40, bytes, true);
  return new Blob([head, ...parts], { type: "audio/wav" });
}

// Power of each bin of a windowed frame: a radix-2 FFT.
function powers(frame) {
  const real = new Float64Array(WINDOW), imag = new Float64Array(WINDOW), bits = Math.log2(WINDOW);
  for (let i = 0; i < WINDOW; i++) {
    let place = 0;
    for (let b = 0; b < bits; b++) place |= ((i >> b) & 1) << (bits - 1 - b);
    real[place] = frame[i] * HANN[i];
  }
  for (let half = 1; half < WINDOW; half *= 2) {
    for (let k = 0; k < half; k++) {
      const cos = Math.cos((Math.PI * k) / half), sin = -Math.sin((Math.PI * k) / half);
      for (let i = k; i < WINDOW; i += 2 * half) {
        const j = i + half;
        const x = real[j] * cos - imag[j] * sin, y = real[j] * sin + imag[j] * cos;
        real[j] = real[i] - x; imag[j] = imag[i] - y;
        real[i] += x; imag[i] += y;
      }
    }
  }
  return real.subarray(0, WINDOW / 2).map((x, i) => (x * x + imag[i] * imag[i]) / (WINDOW / 4) ** 2);
}

// Levels in dB of a sound that comes in pieces: `columns` of ROWS each, lowest pitch first.
export class Spectrogram {
  constructor(numSamples) {
    this.frames = Math.max(1, Math.floor(numSamples / HOP));
    this.columns = Math.min(COLUMNS, this.frames);
    this.levels = new Float32Array(this.columns * ROWS).fill(FLOOR_DB);
    this.pending = new Float32Array(WINDOW);
    this.filled = WINDOW / 2;
    this.frame = 0;
  }

  add(samples) {
    for (const sample of samples) {
      this.pending[this.filled++] = sample;
      if (this.filled < WINDOW) continue;
      this.#addFrame();
      this.pending.copyWithin(0, HOP);
      this.filled -= HOP;
    }
  }

  // The rows have equal steps of pitch; each shows its loudest bin, a column its loudest frame.
  #addFrame() {
    const power = powers(this.pending), column = Math.floor((this.frame++ * this.columns) / this.frames);
    for (let row = 0; row < ROWS; row++) {
      const first = Math.floor(2 * (WINDOW / 4) ** (row / ROWS));
      const last = Math.max(first + 1, Math.floor(2 * (WINDOW / 4) ** ((row + 1) / ROWS)));
      const level = 10 * Math.log10(Math.max(...power.subarray(first, last), 1e-12));
      const place = column * ROWS + row;
      this.levels[place] = Math.max(this.levels[place], level);
    }
  }
}

export function draw(canvas, { levels, columns }, loudest) {
  [canvas.width, canvas.height] = [columns, ROWS];
  const picture = new ImageData(columns, ROWS);
  for (let i = 0; i < levels.length; i++) {
    const level = Math.min(Math.max((levels[i] - loudest) / RANGE_DB + 1, 0), 1) * (COLOURS.length - 1);
    const from = Math.min(Math.floor(level), COLOURS.length - 2), share = level - from;
    const place = 4 * ((ROWS - 1 - (i % ROWS)) * columns + Math.floor(i / ROWS));
    for (let c = 0; c < 3; c++)
      picture.data[place + c] = COLOURS[from][c] * (1 - share) + COLOURS[from + 1][c] * share;
    picture.data[place + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}
