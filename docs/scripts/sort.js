// Tables inside <div class="sortable">: a click on a column's head sorts by it, a second one the other way round.
// Numbers sort as numbers, and empty cells stay last.
function compare(left, right) {
  const numbers = [parseFloat(left), parseFloat(right)];
  return numbers.some(Number.isNaN) ? left.localeCompare(right) : numbers[0] - numbers[1];
}

function sortBy(table, column, direction) {
  const rows = Array.from(table.tBodies[0].rows);
  const text = (row) => row.cells[column].textContent.trim();
  rows.sort((a, b) => {
    const [left, right] = [text(a), text(b)];
    if (!left || !right) return (left ? 0 : 1) - (right ? 0 : 1);
    return direction * compare(left, right);
  });
  table.tBodies[0].append(...rows);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".sortable table")) {
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      let direction = -1;
      head.style.cursor = "pointer";
      head.addEventListener("click", () => sortBy(table, column, (direction = -direction)));
    });
  }
});
