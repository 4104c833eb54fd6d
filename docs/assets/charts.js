// Charts take the colours of the page, and follow when the reader switches between light and dark.
function colourCharts() {
  const style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--md-typeset-color") || style.color;
  const grid = style.getPropertyValue("--md-default-fg-color--lightest");
  for (const chart of document.querySelectorAll(".js-plotly-plot")) {
    Plotly.relayout(chart, { "font.color": ink, "xaxis.gridcolor": grid, "yaxis.gridcolor": grid, "xaxis.zerolinecolor": grid, "yaxis.zerolinecolor": grid });
  }
}
colourCharts();
new MutationObserver(colourCharts).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
