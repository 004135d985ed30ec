// What the pages need beside htmx: dialogs that ask before something is done, copying a token, no polling while hidden.
"use strict";

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.dialog);
    for (const place of dialog.querySelectorAll("[data-from]")) {
      const value = opener.dataset[place.dataset.from] ?? "";
      if ("value" in place) place.value = value;
      else place.textContent = value;
    }
    for (const form of dialog.querySelectorAll("form[data-action]")) {
      form.action = form.dataset.action.replace("{id}", encodeURIComponent(opener.dataset.id ?? ""));
    }
    dialog.returnFocus = opener.id;
    dialog.showModal();
    return;
  }
  const closer = event.target.closest("[data-close]");
  if (closer) closer.closest("dialog").close();
  const copier = event.target.closest("[data-copy]");
  if (copier) {
    const text = document.getElementById(copier.dataset.copy).textContent;
    navigator.clipboard.writeText(text).then(() => { copier.textContent = "Copied"; }, () => { copier.textContent = "Select and copy"; });
  }
});

// A live table may have been drawn anew while a dialog was open: the button that opened it is found by its name.
document.addEventListener("close", (event) => {
  const opener = event.target.returnFocus && document.getElementById(event.target.returnFocus);
  if (opener) opener.focus();
}, true);

document.addEventListener("submit", (event) => {
  for (const button of event.target.querySelectorAll("button[type=submit]")) {
    setTimeout(() => { button.disabled = true; });
  }
});

document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.target.matches("[data-live]")) event.preventDefault();
});

document.addEventListener("htmx:afterRequest", (event) => {
  const stale = document.getElementById("stale");
  if (stale && event.target.matches("[data-live]")) stale.hidden = event.detail.successful;
});

// A table that is drawn anew stays where it was scrolled to, and keeps the focus.
document.addEventListener("htmx:beforeSwap", (event) => {
  event.target.kept = [...event.target.querySelectorAll(".table-wrap")].map((table) => ({
    label: table.getAttribute("aria-label"), left: table.scrollLeft, hadFocus: table === document.activeElement,
  }));
});

document.addEventListener("htmx:afterSwap", (event) => {
  for (const { label, left, hadFocus } of event.target.kept ?? []) {
    const table = event.target.querySelector(`.table-wrap[aria-label="${label}"]`);
    if (!table) continue;
    table.scrollLeft = left;
    if (hadFocus) table.focus({ preventScroll: true });
  }
});
