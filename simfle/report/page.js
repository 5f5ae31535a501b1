// Click a figure to enlarge it; a click or Escape closes it.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    const parts = [...button.childNodes, figure.querySelector("figcaption")];
    dialog.querySelector("div").replaceChildren(...parts.map((part) => part.cloneNode(true)));
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());

// Click a table heading to sort by its column: first descending, then ascending.
for (const button of document.querySelectorAll("table.sorts th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const down = heading.getAttribute("aria-sort") !== "descending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // missing values stay at the end
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
