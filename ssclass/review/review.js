// The keyboard of the review. Without it every form works by itself; with it a photo takes one key.
"use strict";
const FORM = document.body.dataset.form;
const status = document.getElementById("status");

async function post(path, fields) {
  const answer = await fetch(document.body.dataset.root + path, {
    method: "POST",
    headers: { "X-Form": FORM, "Accept": "application/json" },
    body: new URLSearchParams(fields),
  });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || "it was refused");
  return body;
}

function say(text) { status.textContent = text; }

function show(answer) {
  for (const count of document.querySelectorAll("[data-count]")) count.textContent = answer.count;
  document.getElementById("undo").disabled = !answer.count;
  const photo = document.getElementById("photo-" + answer.target);
  if (!photo) return null;
  photo.dataset.kind = answer.kind;
  photo.querySelector(".decided").textContent = answer.words;
  return photo;
}

const photos = [...document.querySelectorAll(".photo")];

function go(from, by) {
  const at = photos.indexOf(from) + by;
  if (photos[at]) photos[at].focus();
  else if (by > 0) (document.getElementById("next") || document.getElementById("decided-link")).focus();
}

let last = Promise.resolve(); // one after the other, as they were typed
const stepped = []; // photos, as they were decided on here
function step(photo, kind, label) {
  const fields = { kind: kind, target: photo.dataset.target, label: label || "", held: photo.dataset.held };
  stepped.push(photo);
  go(photo, 1);
  last = last.then(() => post("/step", fields)).then((answer) => { show(answer); say(answer.said); })
    .catch((error) => { say(error.message); stepped.splice(stepped.lastIndexOf(photo), 1); photo.focus(); });
}

function undo() {
  const photo = stepped.pop();
  if (photo) photo.focus(); // at once: the next key is meant for it, however late the answer comes
  last = last.then(() => post("/undo", {})).then((answer) => {
    const photo = show(answer);
    if (photo) photo.focus();
    say(answer.said);
  }).catch((error) => say(error.message));
}

document.addEventListener("keydown", (event) => {
  const photo = event.target.closest(".photo");
  if (!photo || event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const classes = JSON.parse(document.body.dataset.classes);
  const key = event.key.toLowerCase();
  if (key >= "1" && key <= "9" && classes[key - 1] !== undefined) {
    const label = classes[key - 1];
    if (label === photo.dataset.label) step(photo, "keep"); else step(photo, "relabel", label);
  } else if (key === "k") step(photo, "keep");
  else if (key === "x" || key === "delete") step(photo, "remove");
  else if (key === "u") undo();
  else if (key === "j" || key === "arrowright" || key === "arrowdown") go(photo, 1);
  else if (key === "h" || key === "arrowleft" || key === "arrowup") go(photo, -1);
  else return;
  event.preventDefault();
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  const photo = form.closest(".photo");
  if (!photo || !event.submitter) return;
  event.preventDefault();
  const fields = new FormData(form, event.submitter);
  step(photo, fields.get("kind"), fields.get("label"));
});

if (photos.length && !location.hash) photos[0].focus({ preventScroll: true });

const waiting = document.getElementById("waiting");
if (waiting) setTimeout(() => location.reload(), 1500);
