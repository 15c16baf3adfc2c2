"""The look: Gradio theme tokens, one style sheet, no font or script from elsewhere."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import plotly

CSS_PATH = Path(__file__).parent / "page.css"
FAVICON_PATH = Path(__file__).parent / "favicon.png"
PLOTLY_PATH = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
PLOTLY_URL = f"/gradio_api/file={PLOTLY_PATH}"

# Iris: the accent. 600 on white has a contrast of 5.9:1, 300 on the dark ground 9:1.
IRIS = gr.themes.Color(
    name="iris",
    c50="#f2f1ff", c100="#e6e4ff", c200="#cfcbff", c300="#b1aaff", c400="#9187fb", c500="#7264f0",
    c600="#5b4bdb", c700="#4a3bb8", c800="#3b3092", c900="#2e276f", c950="#1b1745",
)  # fmt: skip

THEME = gr.themes.Base(
    primary_hue=IRIS,
    secondary_hue=IRIS,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_md,
    font=["Inter", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"],
).set(
    body_background_fill="#f6f6fb",
    body_background_fill_dark="#0d0d16",
    background_fill_primary_dark="#161623",
    background_fill_secondary_dark="#1c1c2b",
    color_accent_soft_dark="#26233f",
    border_color_accent_subdued_dark="#443f78",
    table_even_background_fill_dark="#11111c",
    table_odd_background_fill_dark="#161623",
    body_text_color="#1c1b2e",
    body_text_color_dark="#ecebf7",
    body_text_color_subdued="#5d5b76",
    body_text_color_subdued_dark="#a7a5c0",
    block_background_fill="#ffffff",
    block_background_fill_dark="#11111c",
    block_border_color="#e3e2ef",
    block_border_color_dark="#2a2a3d",
    block_label_background_fill="*block_background_fill",
    block_label_background_fill_dark="*block_background_fill",
    block_label_text_color="*body_text_color_subdued",
    block_title_text_color="*body_text_color",
    block_title_text_weight="600",
    block_info_text_color="*body_text_color_subdued",
    block_radius="12px",
    container_radius="12px",
    button_large_radius="10px",
    button_medium_radius="10px",
    button_small_radius="8px",
    input_radius="9px",
    input_border_width="1px",
    checkbox_label_border_width="1px",
    button_secondary_border_color_hover="*primary_400",
    button_border_width="1px",
    block_shadow="none",
    block_shadow_dark="none",
    border_color_primary="#e3e2ef",
    border_color_primary_dark="#2a2a3d",
    input_background_fill="#ffffff",
    input_background_fill_dark="#11111c",
    input_border_color="#d5d3e6",
    input_border_color_dark="#33334a",
    input_shadow="none",
    input_shadow_dark="none",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_500",
    button_primary_background_fill_hover_dark="*primary_600",
    button_primary_text_color="#ffffff",
    button_secondary_background_fill="#ffffff",
    button_secondary_background_fill_hover="#f2f1ff",
    button_secondary_background_fill_dark="#1d1d2c",
    button_secondary_background_fill_hover_dark="#27273a",
    button_secondary_border_color="#d5d3e6",
    button_secondary_border_color_dark="#33334a",
    button_secondary_text_color="*body_text_color",
    checkbox_label_background_fill="#ffffff",
    checkbox_label_background_fill_dark="#16162380",
    checkbox_label_background_fill_selected="*primary_50",
    checkbox_label_background_fill_selected_dark="#25215080",
    checkbox_label_border_color_selected="*primary_500",
    checkbox_label_text_color_selected="*body_text_color",
    checkbox_background_color_selected="*primary_600",
    checkbox_border_color_selected="*primary_600",
    panel_background_fill="transparent",
    panel_background_fill_dark="transparent",
)

HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'

LOGO = """<svg viewBox="0 0 40 40" width="40" height="40" aria-hidden="true">
<defs><linearGradient id="gt-a" x1="0" y1="0" x2="1" y2="1"><stop offset="0" stop-color="#9187fb"/>
<stop offset="1" stop-color="#4a3bb8"/></linearGradient></defs>
<path d="M12 5h16l8 10-16 20L4 15z" fill="url(#gt-a)"/>
<path d="M12 5l3.5 10L20 35 4 15zM28 5l-3.5 10L20 35l16-20z" fill="#fff" opacity=".16"/>
<path d="M4 15h8l2.5 5 3-11 4 14 2.5-8H36" fill="none" stroke="#fff" stroke-width="2" stroke-linejoin="round"/></svg>"""

HEADER = f"""<div class="gt-brand">{LOGO}<div><h1>Gemma Tune</h1>
<p>Make a Gemma your own, watch it learn, see what changed.</p></div></div>"""
