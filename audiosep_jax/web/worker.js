// Loads the network and separates recordings, tile by tile, away from the page's own thread.
//
// Messages in: {channels, sentences} separates, {cancel} stops. Messages out: {ready}, {progress},
// {results}, {cancelled} or {error}.
import * as ort from "./runtime/ort.wasm.min.mjs";
import { Spectrogram, mean, wav } from "./sound.js";
import { Words } from "./words.js";

const FIXED = ["mixture", "condition", "first", "total"];
let network, about, words, cancelled;

async function fetched(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} is missing on the server (${response.status}).`);
  return response;
}
const json = async (name) => (await fetched(name)).json();
const bytes = async (name) => (await fetched(name)).arrayBuffer();

async function load() {
  about = { ...(await json("model.onnx.json")), ...(await json("page.json")) };
  if (about.words) words = new Words(about.words, await bytes("words.bin"));
  network = await ort.InferenceSession.create(new Uint8Array(await bytes("model.onnx")), { executionProviders: ["wasm"] });
  const sentences = Object.keys(about.conditions);
  about.state_bytes = Object.values(firstState(1)).reduce((sum, { data }) => sum + data.byteLength, 0);
  self.postMessage({ ready: { ...about, words: Boolean(words), conditions: sentences } });
}

function conditionOf(sentence, rows) {
  const row = about.conditions[sentence] ?? words.embed(sentence);
  return tensor(Float32Array.from({ length: rows * row.length }, (_, i) => row[i % row.length]), rows);
}
const tensor = (data, rows) => new ort.Tensor("float32", data, [rows, data.length / rows]);
const integer = (value) => new ort.Tensor("int64", BigInt64Array.of(BigInt(value)), [1]);

function firstState(rows) {
  const state = {};
  for (const { name, shape } of network.inputMetadata) {
    if (FIXED.includes(name)) continue;
    const sizes = [rows, ...shape.slice(1)];
    state[name] = new ort.Tensor("float32", new Float32Array(sizes.reduce((a, b) => a * b)), sizes);
  }
  return state;
}

// Samples of a tile from a recording that is mirrored at both ends, with zeros behind it.
function tileOf(channels, start, count, half) {
  const length = channels[0].length, period = Math.max(2 * (length - 1), 1);
  const tile = new Float32Array(channels.length * count);
  channels.forEach((channel, row) => {
    for (let i = 0; i < Math.min(count, length + 2 * half - start); i++) {
      const place = (((start + i - half) % period) + period) % period;
      tile[row * count + i] = channel[Math.min(place, period - place)];
    }
  });
  return tensor(tile, channels.length);
}

// A result that grows piece by piece. Blobs may be stored on disk by the browser.
class Track {
  constructor(numSamples) {
    this.blobs = [];
    this.picture = new Spectrogram(numSamples);
  }

  add(rows) {
    const interleaved = new Float32Array(rows[0].length * rows.length);
    rows.forEach((row, channel) => row.forEach((x, i) => { interleaved[i * rows.length + channel] = x; }));
    this.blobs.push(new Blob([interleaved]));
    this.picture.add(mean(rows));
  }
}

async function separate({ channels, sentences }) {
  const { hop_samples: hop, window_samples: window, tile_frames: tile } = about;
  const rows = channels.length, length = channels[0].length, half = window / 2;
  const skipped = about.delay_frames * hop + half, total = integer(Math.floor(length / hop) + 1);
  const conditions = sentences.map((sentence) => conditionOf(sentence, rows));
  const states = sentences.map(() => firstState(rows));
  const tracks = Array.from({ length: sentences.length + 2 }, () => new Track(length));
  for (let first = 0; first * hop < skipped + length; first += tile) {
    const mixture = tileOf(channels, first * hop, (tile - 1) * hop + window, half);
    const start = first * hop - skipped;
    const [from, to] = [Math.max(start, 0), Math.min(start + tile * hop, length)];
    const rest = channels.map((channel) => channel.slice(from, to));
    if (from < to) tracks[0].picture.add(mean(rest));
    for (let n = 0; n < sentences.length; n++) {
      const inputs = { mixture, condition: conditions[n], first: integer(first), total, ...states[n] };
      const results = await network.run(inputs);
      for (const name in states[n]) states[n][name] = results[`next ${name}`];
      // A pause in which the message {cancel} arrives.
      await new Promise((resume) => setTimeout(resume));
      if (cancelled) return self.postMessage({ cancelled: true });
      self.postMessage({ progress: (first + tile * ((n + 1) / sentences.length)) * hop / (skipped + length) });
      if (from >= to) continue;
      const estimate = channels.map((_, row) =>
        results.estimate.data.subarray(row * tile * hop + from - start, row * tile * hop + to - start));
      rest.forEach((channel, row) => estimate[row].forEach((x, i) => { channel[i] -= x; }));
      tracks[n + 1].add(estimate);
    }
    if (from < to) tracks.at(-1).add(rest);
  }
  const results = tracks.map(({ blobs, picture: { levels, columns } }) =>
    ({ levels, columns, blob: blobs.length ? wav(blobs, rows, about.sample_rate_hz) : null }));
  self.postMessage({ results });
}

self.onmessage = async ({ data }) => {
  if (data.cancel) return void (cancelled = true);
  cancelled = false;
  try { await separate(data); } catch (error) { self.postMessage({ error: error.message ?? String(error) }); }
};
load().catch((error) => self.postMessage({ error: error.message ?? String(error) }));
