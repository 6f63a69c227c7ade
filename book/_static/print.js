// Paper is white and cannot be clicked: while a page is printed it is in light mode, and solutions and
// other folded text are open. Afterwards it is as it was.
let opened = [];
let theme;
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details.sd-dropdown:not([open])")];
  opened.forEach((details) => { details.open = true; });
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
window.addEventListener("afterprint", () => {
  opened.forEach((details) => { details.open = false; });
  document.documentElement.dataset.theme = theme;
});
