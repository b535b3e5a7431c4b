// The labeling page. The server holds the state; each answer is a request, and
// its response says what to show next. See session.py and server.py.
"use strict";

const $ = (id) => document.getElementById(id);
const TOKEN = new URLSearchParams(location.hash.slice(1)).get("token") || "";
const ALIVE_SECONDS = 15;
const KEPT_PICTURES = 60;
// Another one each time the page is loaded: a tab that is duplicated must not
// have the name of the other.
const BROWSER = random();

let state = null;       // as the server sent it last
let view = null;        // the image on show, and whether it is being corrected
let shown = -1;         // index of the image whose picture can be seen
let busy = false;       // a request is under way: keys are ignored
let beyond = false;     // go on behind the goal
let hints = true;
let grid = null;        // the grid of look-alikes: image → ticked

// ------------------------------------------------------------------ requests

function random() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function nextRequest() {
  return `${BROWSER}-${random()}`;
}

function pause(seconds) {
  return new Promise((done) => setTimeout(done, 1000 * seconds));
}

// Sends a request until the server has answered it. Sent again after a lost
// response it is the same request, which the server carries out once.
async function call(path, body = null, retry = true) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers: {
          "X-Label-Token": TOKEN,
          ...(body ? { "Content-Type": "application/json" } : {}),
        },
        body: body && JSON.stringify(body),
      });
      if (response.headers.get("Content-Type") !== "application/json") {
        const content = await response.blob();
        lost(false);
        return { status: response.status, content };
      }
      const content = await response.json();
      lost(false);
      return { status: response.status, content };
    } catch (error) {
      if (!retry) throw error;
      lost(true);
      await pause(1);
    }
  }
}

let isLost = false;
function lost(now) {
  if (now && !isLost) {
    notice("The server does not answer. If it has ended, start the command "
      + "again and open the address that it prints; what was answered is kept.");
  } else if (!now && isLost) {
    notice("");
  }
  isLost = now;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Does one thing at a time: what is pressed meanwhile is not meant for the
// image that comes next.
async function alone(action) {
  if (busy) return;
  busy = true;
  try {
    await action();
  } finally {
    busy = false;
  }
}

// ------------------------------------------------------------------ pictures

const pictures = new Map();  // path → promise of {url} or {error}

function picture(path) {
  let promise = pictures.get(path);
  if (promise) {
    pictures.delete(path);  // the map is in the order of use
  } else {
    promise = call(path).then(({ status, content }) => (
      status === 200
        ? { url: URL.createObjectURL(content) }
        : { error: content.error || `status ${status}` }
    ));
  }
  pictures.set(path, promise);
  if (pictures.size > KEPT_PICTURES) {
    const [oldest, old] = pictures.entries().next().value;
    pictures.delete(oldest);
    old.then(({ url }) => url && URL.revokeObjectURL(url));
  }
  return promise;
}

let loadingAhead = false;
// One after the other, so that an answer need not wait for a connection.
async function loadAhead() {
  if (loadingAhead) return;
  loadingAhead = true;
  try {
    for (let next; (next = state.ahead.find(
      (index) => !pictures.has(`image/${index}`))) !== undefined;) {
      await picture(`image/${next}`);
    }
  } finally {
    loadingAhead = false;
  }
}

function markSmall(image) {
  const side = Math.max(image.naturalWidth, image.naturalHeight);
  image.classList.toggle("small", side <= 200);
}

function tile(index) {
  const image = document.createElement("img");
  image.className = "tile";
  image.alt = "";
  image.addEventListener("load", () => markSmall(image));
  picture(`thumbnail/${index}`).then(({ url }) => { if (url) image.src = url; });
  return image;
}

// ------------------------------------------------------------------- showing

function spoken(was) {
  if (!was) return "no answer";
  return { class: was[1], none: "none of these", skip: "skipped" }[was[0]];
}

async function adopt(response) {
  const { status, content } = response;
  if (content.error) notice(content.error);
  if (!("classes" in content)) return false;
  if (!content.error) notice("");
  state = content;
  view = state.current && { ...state.current, correcting: false };
  show();
  await showImage();
  return status === 200;
}

function show() {
  $("title").textContent = `Label ${state.folder}`;
  $("bar").max = Math.max(1, state.goal);
  $("bar").value = Math.min(state.done, state.goal);
  $("progress").textContent = `${state.done} of ${state.goal}`
    + (state.extra ? ` and ${state.extra} more` : "");
  const remarks = [];
  const empty = state.classes.filter((each) => !each.count).length;
  if (empty && state.classes.length) {
    remarks.push(`${empty} of ${state.classes.length} classes without an image`);
  }
  if (state.clusters && state.clusters.open) {
    remarks.push(`${state.clusters.open} of ${state.clusters.all} clusters `
      + "without a label");
  }
  if (state.skipped) remarks.push(`${state.skipped} skipped`);
  if (state.unreadable.length) {
    remarks.push(`${state.unreadable.length} cannot be read`);
  }
  $("remarks").textContent = remarks.join(" · ");
  $("remarks").title = state.unreadable
    .map(({ name, reason }) => `${name}: ${reason}`).join("\n");
  $("none_count").textContent = state.none || "";
  $("undo").disabled = !state.can_undo;
  $("hint").hidden = !state.has_guesses;
  $("hint").setAttribute("aria-pressed", hints);
  showClasses($("classes"), answerWith);
  showRecent();
  showView();
}

function showClasses(place, act) {
  place.replaceChildren(...state.classes.map((each) => {
    const button = document.createElement("button");
    button.type = "button";
    button.classList.toggle("empty", !each.count);
    button.dataset.name = each.name;
    button.title = each.name;
    const parts = [["kbd", "", each.key], ["span", "label", each.name],
      ["span", "count", each.count]];
    for (const [tag, kind, text] of parts) {
      if (text === "") continue;
      const part = document.createElement(tag);
      part.className = kind;
      part.textContent = text;
      button.append(part);
    }
    button.setAttribute("aria-label", `${each.name}, ${each.count} images`);
    if (each.key) button.setAttribute("aria-keyshortcuts", each.key);
    button.addEventListener("click", () => act(each.name));
    return button;
  }));
}

function showRecent() {
  $("recent_part").hidden = !state.recent.length;
  $("recent").replaceChildren(...state.recent.map((each) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.title = each.name;
    button.setAttribute("aria-label",
      `Correct ${each.name}, which is: ${spoken(each.was)}`);
    const what = document.createElement("span");
    what.className = "what";
    what.textContent = spoken(each.was);
    button.append(tile(each.index), what);
    button.addEventListener("click", () => correct(each.index));
    item.append(button);
    return item;
  }));
}

function showView() {
  const active = Boolean(view);
  const open = active && state.classes.length > 0;
  $("frame").hidden = $("name").hidden = !active;
  for (const button of $("classes").children) button.disabled = !open;
  for (const id of ["none", "skip", "like"]) $(id).disabled = !active;
  $("banner").hidden = !(active && view.correcting);
  if (active) {
    $("banner").textContent = `Correcting ${view.name}, which is: `
      + `${spoken(view.was)}. Esc goes back.`;
    $("name").textContent = view.name;
  }
  const guess = hints && active && view.guess;
  $("guess").textContent = guess
    ? `Model’s guess: ${guess.class}, ${Math.round(100 * guess.confidence)} %`
    : "";
  for (const button of $("classes").children) {
    button.classList.toggle("guessed",
      Boolean(guess) && button.dataset.name === guess.class);
  }
  $("finished").hidden = active;
  if (!active) showFinished();
}

function showFinished() {
  $("more").hidden = !state.more;
  // A line does not end within a word, such as after the -- of a flag.
  const words = state.waiting ? [] : state.next_command.split(" ");
  $("command").replaceChildren(...words.flatMap((word) => {
    const part = document.createElement("span");
    part.textContent = word;
    return [part, " "];
  }));
  if (state.waiting) {
    $("finished_title").textContent = "Waiting for another window";
    $("finished_text").textContent = "The last images are open in another "
      + "window. They come here if that one is closed.";
    return;
  }
  const labeled = state.classes.reduce((sum, each) => sum + each.count, 0);
  $("finished_title").textContent = `Done: ${state.done} of ${state.goal}`;
  $("finished_text").textContent = `${labeled} images have a class, `
    + `${state.none} show none of these. All answers are in ${state.labels}. `
    + "End the command by Ctrl-C, and train with:";
}

async function showImage() {
  if (!view) {
    shown = -1;
    $("image").hidden = true;
    say($("finished_title").textContent);
    return;
  }
  const wanted = view;
  const { url, error } = await picture(`image/${wanted.index}`);
  if (view !== wanted) return;
  if (error) {
    pictures.delete(`image/${wanted.index}`);
    await adopt(await call("api/view", { browser: BROWSER, beyond }));
    notice(`${error}; it is passed over.`);
    return;
  }
  const image = $("image");
  image.src = url;
  try {
    await image.decode();
  } catch { /* the browser shows what it can */ }
  if (view !== wanted) return;
  markSmall(image);
  image.hidden = false;
  image.alt = `Image to label: ${wanted.name}`;
  shown = wanted.index;
  awaitGuess(wanted);
  say(wanted.name);
  loadAhead();
}

// The model may need longer than the picture.
async function awaitGuess(wanted) {
  for (let tries = 0; state.has_guesses && !wanted.guess && tries < 20; tries++) {
    await pause(0.5);
    if (view !== wanted) return;
    const { content } = await call("api/open", { image: wanted.index });
    wanted.guess = content.guess;
    if (view === wanted && wanted.guess) showView();
  }
}

let sayNext = "";
function say(text) {
  $("said").textContent = sayNext + text;
  sayNext = "";
}

// ------------------------------------------------------------------ answering

function flash(name) {
  for (const place of [$("classes"), $("like_classes")]) {
    for (const button of place.children) {
      button.classList.toggle("flash", button.dataset.name === name);
    }
  }
}

function answer(images, kind, name = null) {
  return alone(async () => {
    if (name !== null) flash(name);
    sayNext = `${name === null ? spoken([kind]) : name}. `;
    const taken = await adopt(await call("api/answer", {
      request: nextRequest(),
      images: images.map((each) => each.index),
      was: images.map((each) => each.was),
      answer: kind,
      class: name,
      beyond,
    }));
    if (!taken) flash(null);
  });
}

// Only an image that can be seen is answered.
function visible() {
  return view && shown === view.index;
}

function answerWith(name) {
  if (visible()) answer([view], "class", name);
}

function undo() {
  alone(async () => {
    sayNext = "Undone. ";
    await adopt(await call("api/undo", { request: nextRequest(), beyond }));
  });
}

function correct(index) {
  alone(async () => {
    const { status, content } = await call("api/open", { image: index });
    if (status !== 200) return notice(content.error);
    view = { ...content, correcting: true };
    shown = -1;
    showView();
    await showImage();
    scrollTo({ top: 0 });
  });
}

function stopCorrecting() {
  alone(async () => {
    view = state.current && { ...state.current, correcting: false };
    showView();
    await showImage();
  });
}

// ----------------------------------------------------------------- new classes

function openAdd() {
  $("add_name").value = "";
  $("add_error").textContent = "";
  checkAdd();
  $("add_dialog").showModal();
}

function newNames() {
  return $("add_name").value.split(",").map((name) => name.trim())
    .filter((name) => name);
}

function checkAdd() {
  const count = newNames().length;
  $("add_only").disabled = !count;
  $("add_label").disabled = count !== 1 || !visible();
}

function add(andLabel) {
  alone(async () => {
    const names = newNames();
    for (const name of names) {
      const response = await call("api/class",
        { request: nextRequest(), name, beyond });
      if (response.status !== 200) {
        $("add_error").textContent = response.content.error;
        return;
      }
      state = response.content;
      $("add_name").value = newNames().slice(1).join(", ");
    }
    $("add_dialog").close();
    const current = state.current;
    if (view && !view.correcting && current && current.index !== view.index) {
      await adopt({ status: 200, content: state });
      return;
    }
    show();
    if (andLabel) sayNext = "";
  }).then(() => {
    if (andLabel && !$("add_dialog").open) {
      answerWith(state.classes[state.classes.length - 1].name);
    }
  });
}

// ---------------------------------------------------------------- look-alikes

function openGrid() {
  if (!visible()) return;
  alone(async () => {
    const { status, content } = await call("api/like",
      { browser: BROWSER, image: view.index });
    if (status !== 200) return notice(content.error);
    const [first, ...others] = content.images;
    grid = [{ ...first, was: view.was, ticked: true },
      ...others.map((each) => ({ ...each, ticked: false }))];
    $("like_notice").textContent = content.seen < content.all
      ? `${content.seen.toLocaleString("en")} of `
        + `${content.all.toLocaleString("en")} images have been compared so `
        + "far; opened again later, there are more."
      : "";
    showGrid();
    $("like_dialog").showModal();
    $("like_images").querySelector("button").focus();
  });
}

function showGrid() {
  $("like_images").replaceChildren(...grid.map((each) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.title = each.name;
    button.setAttribute("aria-label", each.name);
    button.setAttribute("aria-pressed", each.ticked);
    button.append(tile(each.index));
    button.addEventListener("click", () => {
      each.ticked = !each.ticked;
      button.setAttribute("aria-pressed", each.ticked);
      showTicked();
    });
    item.append(button);
    return item;
  }));
  showClasses($("like_classes"), answerGrid);
  showTicked();
}

function showTicked() {
  const count = grid.filter((each) => each.ticked).length;
  $("like_text").textContent = "Tick the images of one class, then press its "
    + `key. ${count} of ${grid.length} are ticked.`;
  for (const button of $("like_classes").children) button.disabled = !count;
}

function tickAll(ticked) {
  for (const each of grid) each.ticked = ticked;
  for (const button of $("like_images").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", ticked);
  }
  showTicked();
}

function answerGrid(name) {
  const images = grid.filter((each) => each.ticked);
  if (!images.length || busy) return;
  $("like_dialog").close();
  answer(images, "class", name);
}

// ----------------------------------------------------------------------- keys

// The letter of a key, also on keyboards whose letters are not Latin ones.
function letter(event) {
  if (event.key.length === 1 && event.key.charCodeAt(0) < 128) return event.key;
  const match = /^(?:Key|Digit)([A-Z0-9])$/.exec(event.code);
  return match ? match[1].toLowerCase() : event.key;
}

function classOf(key) {
  const exact = state.classes.find((each) => each.key === key);
  return exact
    || state.classes.find((each) => each.key === key.toLowerCase());
}

function onKey(event) {
  if (!state || event.altKey || event.metaKey || event.isComposing) return;
  if ($("add_dialog").open) return;
  const key = letter(event);
  if (event.ctrlKey) {
    if (key.toLowerCase() !== "z" || grid) return;
    event.preventDefault();
    if (state.can_undo) undo();
    return;
  }
  const found = key && classOf(key);
  if ($("like_dialog").open) {
    if (found && !event.repeat) {
      event.preventDefault();
      answerGrid(found.name);
    }
    return;
  }
  // A button that was reached by Tab is pressed by Space and Enter.
  if ((key === " " || key === "Enter") && event.target.tagName === "BUTTON") {
    return;
  }
  const actions = {
    " ": () => visible() && answer([view], "skip"),
    "-": () => visible() && answer([view], "none"),
    "Backspace": () => state.can_undo && undo(),
    "+": openAdd,
    "=": openAdd,
    ".": openGrid,
    ",": toggleHints,
    "Escape": () => view && view.correcting && stopCorrecting(),
  };
  const action = found ? () => answerWith(found.name) : actions[key];
  if (!action) return;
  event.preventDefault();
  if (!event.repeat) action();
}

function toggleHints() {
  hints = !hints;
  $("hint").setAttribute("aria-pressed", hints);
  showView();
}

// ---------------------------------------------------------------------- start

async function refresh() {
  if (busy || (view && view.correcting)) return;
  await alone(async () => {
    await adopt(await call("api/view", { browser: BROWSER, beyond }));
  });
}

async function keepAlive() {
  for (;;) {
    await pause(state && state.waiting ? 3 : ALIVE_SECONDS);
    if (state && state.waiting) {
      await refresh();
    } else {
      try {
        await call("api/alive", { browser: BROWSER }, false);
      } catch { /* said when something is pressed */ }
    }
  }
}

function start() {
  document.addEventListener("keydown", onKey);
  // After a click the keys are again meant for the image.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && event.detail && !$("like_dialog").open) button.blur();
  });
  $("none").addEventListener("click", () => visible() && answer([view], "none"));
  $("skip").addEventListener("click", () => visible() && answer([view], "skip"));
  $("undo").addEventListener("click", undo);
  $("add").addEventListener("click", openAdd);
  $("like").addEventListener("click", openGrid);
  $("hint").addEventListener("click", toggleHints);
  $("more").addEventListener("click", () => { beyond = true; refresh(); });
  $("add_name").addEventListener("input", checkAdd);
  $("add_form").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("add_label").disabled) {
      if (newNames().length) add(false);
    } else {
      add(true);
    }
  });
  $("add_only").addEventListener("click", () => add(false));
  $("add_cancel").addEventListener("click", () => $("add_dialog").close());
  $("like_all").addEventListener("click", () => tickAll(true));
  $("like_nothing").addEventListener("click", () => tickAll(false));
  $("like_close").addEventListener("click", () => $("like_dialog").close());
  $("like_dialog").addEventListener("close", () => { grid = null; });
  // Others need not wait for the image of a page that is closed.
  addEventListener("pagehide", () => fetch("api/leave", {
    method: "POST",
    keepalive: true,
    headers: { "X-Label-Token": TOKEN, "Content-Type": "application/json" },
    body: JSON.stringify({ browser: BROWSER }),
  }));
  addEventListener("pageshow", (event) => { if (event.persisted) refresh(); });
  addEventListener("hashchange", () => location.reload());
  if (!TOKEN) {
    notice("This address lacks its end: open the one that the command printed, "
      + "with #token= and what follows.");
    return;
  }
  refresh().then(() => {
    if (state && !state.classes.length) openAdd();
  });
  keepAlive();
}

start();
