/* Reconstructions side by side: two methods and the ground truth under one magnification. */
(function gallery() {
  const { panels, colors } = data.gallery;
  if (!panels.length) return;
  const views = [...document.querySelectorAll(".view")], captions = [...document.querySelectorAll(".panel figcaption")];
  const selects = [byId("left"), byId("right")];
  const at = { zoom: 1, x: 0, y: 0 };  // the corner that is seen, in parts of the image
  let panel = panels[0], mode = "image";

  function place() {
    const room = 1 - 1 / at.zoom;
    at.x = Math.min(Math.max(at.x, 0), room);
    at.y = Math.min(Math.max(at.y, 0), room);
    for (const view of views) {
      const image = view.firstElementChild, { clientWidth: width, clientHeight: height } = view;
      image.style.transform = `translate(${-at.x * at.zoom * width}px, ${-at.y * at.zoom * height}px) scale(${at.zoom})`;
      image.style.imageRendering = (at.zoom * width) / panel.width > 3 ? "pixelated" : "auto";
    }
    byId("zoom-level").value = `${Math.round(100 * at.zoom)} %`;
  }

  /* Magnifies about a point of the view, given in parts of it. */
  function magnify(factor, px = 0.5, py = 0.5) {
    const zoom = Math.min(Math.max(at.zoom * factor, 1), 16);
    at.x += px / at.zoom - px / zoom;
    at.y += py / at.zoom - py / zoom;
    at.zoom = zoom;
    place();
  }

  function caption(node, picture) {
    const psnr = document.createElement("b");
    psnr.textContent = known(picture.psnr) ? `${picture.psnr.toFixed(2)} dB` : "";
    const ssim = document.createElement("span");
    ssim.textContent = known(picture.ssim) ? `SSIM ${picture.ssim.toFixed(4)}` : "";
    node.replaceChildren(psnr, ssim);
  }

  function bar() {
    const node = captions[2];
    node.replaceChildren();
    if (mode === "image") return;
    const ramp = document.createElement("span"), low = document.createElement("span"), high = document.createElement("span");
    ramp.className = "ramp";
    ramp.style.background = `linear-gradient(to right, ${colors.join(",")})`;
    low.textContent = "error 0";
    high.textContent = `≥ ${short(panel.scale)} % of max.`;
    node.append(ramp, low, high);
  }

  function show() {
    selects.forEach((select, i) => {
      const picture = panel.pictures[select.selectedIndex], image = views[i].firstElementChild;
      image.src = mode === "image" ? picture.image : picture.error;
      views[i].setAttribute("aria-label", `${mode === "image" ? "Reconstruction" : "Error"} of ${panel.name}, ${picture.method}`);
      caption(captions[i], picture);
    });
    views[2].firstElementChild.src = panel.truth;
    for (const view of views) view.style.aspectRatio = `${panel.width} / ${panel.height}`;
    bar();
    place();
  }

  function open(k) {
    const names = selects.map((select) => select.value);
    panel = panels[k];
    selects.forEach((select, i) => {
      select.replaceChildren();
      panel.pictures.forEach((picture) => option(select, picture.method, picture.method));
      const kept = panel.pictures.findIndex((picture) => picture.method === names[i]);
      select.selectedIndex = kept >= 0 ? kept : Math.min(i, panel.pictures.length - 1);
    });
    show();
  }

  panels.forEach((p, k) => option(byId("image"), k, p.name));
  byId("image").addEventListener("change", (event) => open(Number(event.target.value)));
  selects.forEach((select) => select.addEventListener("change", show));
  byId("zoom-in").addEventListener("click", () => magnify(1.5));
  byId("zoom-out").addEventListener("click", () => magnify(1 / 1.5));
  byId("zoom-reset").addEventListener("click", () => magnify(0));
  const setMode = choice(byId("mode"), [["image", "reconstruction"], ["error", "error map"]], (value) => { mode = value; show(); });

  const keys = {
    "+": () => magnify(1.5), "=": () => magnify(1.5), "-": () => magnify(1 / 1.5), 0: () => magnify(0),
    e: () => setMode(mode === "image" ? "error" : "image"), E: () => setMode(mode === "image" ? "error" : "image"),
    ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
  };
  function move(dx, dy) {
    at.x += dx / at.zoom;
    at.y += dy / at.zoom;
    place();
  }
  for (const view of views) {
    const pointers = new Map();
    view.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    view.addEventListener("wheel", (event) => {
      if (document.activeElement !== view && !event.ctrlKey) return;  // the page scrolls
      event.preventDefault();
      const box = view.getBoundingClientRect();
      magnify(Math.exp(-event.deltaY / 400), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    }, { passive: false });
    view.addEventListener("pointerdown", (event) => {
      view.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    view.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const box = view.getBoundingClientRect();
      const other = [...pointers].find(([id]) => id !== event.pointerId);
      if (other) {
        const [ox, oy] = other[1], distance = ([px, py]) => Math.hypot(px - ox, py - oy) || 1;
        const now = [event.clientX, event.clientY];
        magnify(distance(now) / distance(before), ((now[0] + ox) / 2 - box.left) / box.width, ((now[1] + oy) / 2 - box.top) / box.height);
      } else move((before[0] - event.clientX) / box.width, (before[1] - event.clientY) / box.height);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, (event) => pointers.delete(event.pointerId));
    new ResizeObserver(place).observe(view);
  }
  open(0);
  setMode("image");
})();
