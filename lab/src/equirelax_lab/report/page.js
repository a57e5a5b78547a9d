// Draws the figures when they come into view, in the colours of the reader's theme.
(function () {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const figures = Array.from(document.querySelectorAll("figure.chart"));
  const options = { responsive: false, displaylogo: false, displayModeBar: "hover", scrollZoom: false,
    modeBarButtons: [["toImage", "resetScale2d"]], plotlyServerURL: "",
    toImageButtonOptions: { format: "png", scale: 2 } };

  function variable(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }

  // Black lines are light ones on a dark ground; the other colours of the palette are seen on both. Paper is white.
  function content(figure) {
    let text = figure.querySelector("script").textContent;
    if (dark.matches && !root.classList.contains("printing")) {
      text = text.split('"#000000"').join('"#f2f2f2"').split("rgba(0, 0, 0,").join("rgba(242, 242, 242,");
    }
    return JSON.parse(text);
  }

  function layoutOf(given) {
    const ink = variable("--ink"), rule = variable("--rule"), narrow = window.innerWidth < 600;
    const layout = Object.assign({
      autosize: true, margin: { l: 10, r: 10, t: 10, b: 10 }, hovermode: "closest", showlegend: true,
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, xanchor: "left" },
    }, given, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: variable("--soft"), activecolor: ink },
      font: { color: ink, size: narrow ? 11 : 13, family: "system-ui, sans-serif" } });
    for (const key of ["xaxis", "yaxis"]) {
      layout[key] = Object.assign({ gridcolor: rule, linecolor: rule, zerolinecolor: rule }, layout[key]);
    }
    return layout;
  }

  function draw(figure) {
    const place = figure.querySelector(".plot"), given = content(figure);
    figure.dataset.drawn = "begun";
    return Plotly.react(place, given.data, layoutOf(given.layout), options).then(function () {
      figure.dataset.drawn = "yes";
      resized.observe(place);
    });
  }

  // Plotly follows the window; a place also changes its width when a section opens or the page begins to scroll.
  const resized = new ResizeObserver(function (entries) {
    for (const entry of entries) {
      const place = entry.target, width = Math.round(entry.contentRect.width);
      if (width > 0 && place._fullLayout && Math.abs(place._fullLayout.width - width) > 1) { Plotly.Plots.resize(place); }
    }
  });

  function drawNew(figure) {
    if (!figure.dataset.drawn) { draw(figure); }
  }

  function openAll(open) {
    document.querySelectorAll("main details").forEach(function (one) { one.open = open; });
  }

  const seen = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      if (entry.isIntersecting) { seen.unobserve(entry.target); drawNew(entry.target); }
    }
  }, { rootMargin: "500px" });
  figures.forEach(function (figure) { seen.observe(figure); });

  function drawAgain() {
    figures.filter(function (figure) { return figure.dataset.drawn; }).forEach(draw);
  }
  dark.addEventListener("change", drawAgain);
  const button = document.getElementById("open-all");
  button.addEventListener("click", function () {
    const open = button.getAttribute("aria-pressed") !== "true";
    openAll(open);
    button.setAttribute("aria-pressed", String(open));
  });
  function everything() { openAll(true); figures.forEach(drawNew); }
  window.addEventListener("beforeprint", function () {
    root.classList.add("printing");
    drawAgain();
    everything();
  });
  window.addEventListener("afterprint", function () {
    root.classList.remove("printing");
    drawAgain();
  });
  // page.html#everything shows all sections opened and all figures drawn
  if (window.location.hash === "#everything") { everything(); }
})();
