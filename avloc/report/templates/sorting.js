for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells], body = table.tBodies[0];
  const shown = (row, i) => row.cells[i].querySelector('.told')?.textContent === 'another rule' ? ''
    : row.cells[i].querySelector('.number')?.textContent ?? row.cells[i].textContent;
  const number = text => { const n = parseFloat(text); return Number.isNaN(n) ? null : n; };
  heads.forEach((head, i) => {
    const name = head.textContent || 'name', button = document.createElement('button');
    button.type = 'button';
    button.textContent = name;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const cells = [...body.rows].map(row => ({ row, text: shown(row, i).trim() }));
      const numeric = cells.some(c => number(c.text) !== null) && i > 0;
      const up = head.getAttribute('aria-sort') ? head.getAttribute('aria-sort') === 'descending' : !numeric;
      const empty = c => numeric ? number(c.text) === null : c.text === '';
      cells.sort((a, b) => empty(a) - empty(b)
        || (up ? 1 : -1) * (numeric ? number(a.text) - number(b.text) : a.text.localeCompare(b.text)));
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...cells.map(c => c.row));
    });
  });
}
