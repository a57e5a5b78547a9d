// Opens all sections at once: on demand, with page.html#everything, and for printing.
(function () {
  "use strict";
  const button = document.getElementById("open-all");
  let closed = [];

  function openAll(open) {
    document.querySelectorAll("main details").forEach(function (one) { one.open = open; });
  }

  button.addEventListener("click", function () {
    const open = button.getAttribute("aria-pressed") !== "true";
    openAll(open);
    button.setAttribute("aria-pressed", String(open));
  });
  window.addEventListener("beforeprint", function () {
    closed = Array.from(document.querySelectorAll("main details:not([open])"));
    openAll(true);
  });
  window.addEventListener("afterprint", function () {
    closed.forEach(function (one) { one.open = false; });
  });
  if (window.location.hash === "#everything") { openAll(true); }
})();
