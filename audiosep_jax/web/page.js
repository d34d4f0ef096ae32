// The page: asks for a recording and sentences, and shows what the worker makes of them.
import { draw, mean } from "./sound.js";

const MEGABYTE = 1e6;
const STATE_COPIES = 6;  // a tile's, the next one's, those in the network, and what is not yet freed
const [drop, file, record, recording, sentences, memory, start, cancel, progress, status, results] =
  "drop file record recording sentences memory separate cancel progress status results"
    .split(" ").map((id) => document.getElementById(id));
let about, sound, asked, recorder;  // `sound`: {blob, name, seconds}

// A worker that is made from a blob obeys this page's Content-Security-Policy.
const source = `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
worker.onmessage = ({ data }) => {
  const [[kind, value]] = Object.entries(data);
  ({ ready, progress: advance, results: show, cancelled: () => finish("Cancelled."), error: fail })[kind](value);
};
worker.onerror = () => fail("The network cannot be loaded: this browser is too old, or a file is missing.");

function ready(loaded) {
  about = loaded;
  document.getElementById(about.words ? "typed" : "offered").hidden = false;
  if (about.words) sentences.value = about.conditions.join("\n");
  else offer();
  finish(`Ready. Results have ${about.sample_rate_hz} samples a second.`);
}

function offer() {
  document.getElementById("why").textContent =
    `The text encoder ${about.text} does not run in a browser, so the page knows these sentences alone.`;
  for (const sentence of about.conditions) {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: sentence, onchange: update });
    label.append(box, ` ${sentence}`);
    document.getElementById("offered").append(label);
  }
}

function wanted() {
  const boxes = [...document.querySelectorAll("#offered input:checked")].map((box) => box.value);
  const lines = about?.words ? sentences.value.split("\n").map((line) => line.trim()).filter(Boolean) : boxes;
  return [...new Set(lines)];
}

function say(text, wrong = false) {
  status.textContent = text;
  status.classList.toggle("wrong", wrong);
}

function finish(text, wrong) {
  asked = undefined;
  progress.hidden = cancel.disabled = true;
  say(text, wrong);
  update();
}
const fail = (text) => finish(text, true);
const advance = (share) => { progress.value = share; };

// ------------------------------------------------------------------ the recording

function take(blob, name) {
  if (!blob) return;
  sound = undefined;
  URL.revokeObjectURL(recording.src);
  recording.src = URL.createObjectURL(blob);
  recording.hidden = false;
  recording.ondurationchange = () => {
    const seconds = recording.duration;
    // Files without a length, such as what browsers record, tell it once their end was sought.
    recording.currentTime = seconds === Infinity ? Number.MAX_SAFE_INTEGER : 0;
    if (Number.isFinite(seconds)) sound = { blob, name, seconds };
    update();
  };
  recording.onerror = () => { recording.hidden = true; say(`${name}: this browser cannot read it as a recording.`, true); };
  update();
}

file.onchange = () => take(file.files[0], file.files[0]?.name);
drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files[0], event.dataTransfer.files[0]?.name);
};

record.onclick = async () => {
  if (recorder) return recorder.stop();
  const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      take(new Blob(parts, { type: recorder.mimeType }), "recording");
      recorder = undefined;
      record.textContent = "Record";
    };
    recorder.start();
    record.textContent = "Stop";
  } catch (error) {
    say(`The microphone cannot be used (${error.message}).`, true);
  }
};

// ------------------------------------------------------------------ separation

// An upper limit: two channels, decoded at 48 kHz and kept at the network's rate, with every result.
function bytesNeeded(parts) {
  const decoded = sound.seconds * 48_000 * 2 * 4 + sound.blob.size;
  const kept = sound.seconds * about.sample_rate_hz * 2 * 4 * (parts + 3);
  return about.fixed_bytes + 2 * parts * STATE_COPIES * about.state_bytes + decoded + kept;
}

function update() {
  const parts = wanted().length;
  start.disabled = !(about && sound && parts) || Boolean(asked);
  if (!about || !sound) return void (memory.textContent = "");
  const need = Math.ceil(bytesNeeded(Math.max(parts, 1)) / MEGABYTE / 10) * 10;
  memory.textContent = `${sound.name}: ${sound.seconds.toFixed(1)} s. Separating it takes up to ${need} MB of memory.`;
}
sentences.oninput = update;

document.getElementById("form").onsubmit = async (event) => {
  event.preventDefault();
  if (start.disabled) return;
  asked = { name: sound.name.replace(/\.[^.]*$/, ""), sentences: wanted(), blob: sound.blob };
  [progress.value, progress.hidden, cancel.disabled, start.disabled] = [0, false, false, true];
  say("Separating …");
  try {
    const decoder = new OfflineAudioContext(1, 1, about.sample_rate_hz);
    const audio = await decoder.decodeAudioData(await asked.blob.arrayBuffer());
    const channels = Array.from({ length: audio.numberOfChannels }, (_, c) => audio.getChannelData(c));
    if (asked.cancelled) return finish("Cancelled.");
    const mixed = channels.length > 2 ? [mean(channels)] : channels;
    worker.postMessage({ channels: mixed, sentences: asked.sentences });
  } catch (error) {
    fail(`${asked.name}: this browser cannot decode it (${error.message}).`);
  }
};
cancel.onclick = () => { asked.cancelled = true; worker.postMessage({ cancel: true }); };

function show(tracks) {
  const loudest = tracks[0].levels.reduce((a, b) => Math.max(a, b), -40);
  const titles = ["Recording", ...asked.sentences, "Everything else"];
  document.querySelectorAll("#results audio").forEach((player) => URL.revokeObjectURL(player.src));
  results.replaceChildren(...tracks.map((track, n) => item(titles[n], track, loudest)));
  finish("Done.");
}

function item(title, track, loudest) {
  const make = (tag, fields, ...children) => {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...children);
    return element;
  };
  const canvas = make("canvas", { role: "img", ariaLabel: `Spectrogram of ${title}` });
  draw(canvas, track, loudest);
  const head = make("div", { className: "row" }, make("h2", { textContent: title }));
  const name = `${asked.name} - ${title.replace(/[\\/:*?"<>|]/g, "_")}.wav`;
  const href = URL.createObjectURL(track.blob ?? asked.blob);
  if (track.blob) head.append(make("a", { href, download: name, textContent: "Download", ariaLabel: `Download ${title}` }));
  return make("li", {}, head, make("audio", { controls: true, src: href, ariaLabel: title }), canvas);
}
