for (const svg of document.querySelectorAll('svg[data-t]')) {
  const t = JSON.parse(svg.dataset.t), w = JSON.parse(svg.dataset.w);
  const spans = JSON.parse(svg.dataset.p), box = JSON.parse(svg.dataset.b);
  const tip = document.getElementById('tip');
  svg.addEventListener('mousemove', e => {
    const place = svg.getBoundingClientRect();
    const s = box[2] * ((e.clientX - place.left) * box[3] / place.width - box[0]) / (box[1] - box[0]);
    if (s < 0 || s > box[2]) { tip.style.display = 'none'; return }
    let i = 0;
    while (i < t.length - 1 && t[i + 1] < s) i++;
    let name = '';
    for (const span of spans) if (s >= span[0] && s < span[1]) name = span[2];
    tip.textContent = s.toFixed(2) + ' s  ' + (w[i] === null ? '-' : w[i].toFixed(2) + ' W') + '  ' + name;
    tip.style.display = 'block';
    tip.style.left = e.clientX + 12 + 'px';
    tip.style.top = e.clientY + 12 + 'px';
  });
  svg.addEventListener('mouseleave', () => tip.style.display = 'none');
}
