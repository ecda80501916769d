// Hand the trace to the Perfetto UI in the frame (or, as a second way, in a window that this page opened).
"use strict";
const given = document.body.dataset;
const uiOrigin = given.origin || location.origin;
const isOurs = uiOrigin === location.origin;
const element = (id) => document.getElementById(id);
const PING_EVERY_MS = 150;
const NO_ANSWER_MS = Number(given.patience);
const LOOK_EVERY_MS = 250;
const NO_HANDLE_MS = 10000;

// The server lives as long as this stream is open.
const alive = new EventSource("alive");
let misses = 0;
alive.onopen = () => { misses = 0; };
alive.onerror = () => { misses += 1; if (misses > 3) alive.close(); };
const say = (text) => { element("state").textContent = text; };
const tell = (what) => fetch("told/" + what).catch(() => undefined);

function trouble(what, text) {
  element("why").textContent = text;
  element("trouble").hidden = false;
  say("not loaded");
  tell(what);
}

async function readTrace() {
  const answer = await fetch("trace");
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  const size = Number(answer.headers.get("Content-Length"));
  const bytes = new Uint8Array(size);
  const reader = answer.body.getReader();
  let have = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes.set(value, have);
    have += value.length;
    say(`reading ${(have / 1e6).toFixed(1)} of ${(size / 1e6).toFixed(1)} MB`);
  }
  if (have !== size) throw new Error(`only ${have} of ${size} bytes came`);
  return bytes.buffer;
}

// Resolve when the UI answers; it loses what is sent before its script runs.
function answered(ui) {
  return new Promise((resolve, reject) => {
    const since = performance.now();
    const stop = () => { clearInterval(timer); removeEventListener("message", hear); };
    const hear = (event) => {
      if (event.source !== ui || event.origin !== uiOrigin || event.data !== "PONG") return;
      stop();
      resolve();
    };
    const timer = setInterval(() => {
      if (performance.now() - since > NO_ANSWER_MS) { stop(); reject(new Error("no answer")); return; }
      try { ui.postMessage("PING", uiOrigin); } catch { /* the window still holds another page */ }
    }, PING_EVERY_MS);
    addEventListener("message", hear);
  });
}

// Our own copy of the UI can be asked whether the trace stands; another origin's cannot, and is believed.
function stands(ui) {
  return new Promise((resolve) => {
    const since = performance.now();
    const look = () => {
      let app;
      try { app = ui.app; } catch { app = undefined; }
      const isDone = app ? app.trace && !app.isLoadingTrace : performance.now() - since > NO_HANDLE_MS;
      if (isDone || !isOurs) resolve(); else setTimeout(look, LOOK_EVERY_MS);
    };
    look();
  });
}

// The UI keeps a copy of every trace in the browser's cache, under an origin that never comes back.
async function dropCopies() {
  if (!isOurs || !window.caches) return;
  for (const name of await caches.keys()) await caches.delete(name);
}

async function handOver(ui, failure) {
  element("trouble").hidden = true;
  let buffer;
  try {
    const reading = readTrace();
    await Promise.all([reading, answered(ui).catch(() => { throw new RangeError(failure.text); })]);
    buffer = await reading;
  } catch (error) {
    if (error instanceof RangeError) trouble(failure.what, error.message);
    else trouble("no-trace", `The trace did not come: ${error.message}.`);
    return;
  }
  say("the Perfetto UI loads the trace");
  // `keepApiOpen` (Perfetto v52) lets the button below move the view later.
  const perfetto = { buffer, title: given.title, fileName: given.file, keepApiOpen: true };
  ui.postMessage({ perfetto }, uiOrigin, [buffer]);
  if (given.start) zoom(ui);
  await stands(ui);
  await dropCopies().catch(() => undefined);
  say(isOurs ? "offline: nothing leaves this machine" : "shown by " + new URL(uiOrigin).host + ", in this browser only");
  if (given.start) offerZoom(ui);
  tell("loaded");
}

// The UI tries for 4 s and then forgets it; the address has the window too, but no room around the kernel.
function zoom(ui) {
  const perfetto = { timeStart: Number(given.start) / 1e9, timeEnd: Number(given.end) / 1e9, viewPercentage: 0.4 };
  ui.postMessage({ perfetto }, uiOrigin);
}

function offerZoom(ui) {
  element("zoom").hidden = false;
  element("zoom").onclick = () => zoom(ui);
}

element("window").onclick = () => {
  const opened = window.open(given.ui, "_blank");
  if (!opened) { trouble("no-ui", "The browser blocked the window: allow pop-ups for this page."); return; }
  element("ui").remove();
  handOver(opened, { what: "no-ui", text: "Perfetto does not answer in its window either." });
};

element("ui").src = given.ui;
handOver(element("ui").contentWindow, {
  what: "no-frame",
  text: "Perfetto does not answer in this page. A window of its own may do.",
});
