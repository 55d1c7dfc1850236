for (const form of document.querySelectorAll('form.rows')) {
  const table = form.nextElementSibling;
  form.hidden = false;
  form.addEventListener('change', e => {
    for (const row of table.querySelectorAll('tr.' + e.target.name)) row.hidden = !e.target.checked;
  });
  form.addEventListener('submit', e => e.preventDefault());
}
for (const form of document.querySelectorAll('form.filters')) {
  const gallery = form.nextElementSibling, figures = [...gallery.children];
  const update = () => {
    const { label, kind, order } = Object.fromEntries(new FormData(form));
    let count = 0;
    for (const f of figures) {
      const labels = f.dataset.label.split('\n');
      f.hidden = (label && !labels.includes(label)) || (kind && !f.dataset.kinds.split('|').includes(kind));
      count += !f.hidden;
    }
    gallery.append(...(order === 'worst' ? [...figures].reverse() : figures));
    form.querySelector('output').textContent = count + ' of ' + figures.length + ' pictures match';
  };
  form.hidden = false;
  form.addEventListener('change', update);
  form.addEventListener('submit', e => e.preventDefault());
  update();
}
