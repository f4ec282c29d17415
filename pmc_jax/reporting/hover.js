const box = document.getElementById("hover");
for (const mark of document.querySelectorAll(".mark")) {
  const show = () => {
    const place = mark.getBoundingClientRect();
    box.textContent = mark.dataset.hover;
    box.style.display = "block";
    const right = document.documentElement.clientWidth - box.offsetWidth - 8;
    box.style.left = Math.max(8, Math.min(place.right + 8, right)) + window.scrollX + "px";
    box.style.top = place.bottom + 8 + window.scrollY + "px";
  };
  const hide = () => { box.style.display = "none"; };
  for (const event of ["mouseenter", "focus"]) mark.addEventListener(event, show);
  for (const event of ["mouseleave", "blur"]) mark.addEventListener(event, hide);
}
