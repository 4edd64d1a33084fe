"""Sphinx's settings for the course's pages; `tools/make_site.py` writes what they are made from."""

project = html_title = "Feeding images"

extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
highlight_language = "none"
suppress_warnings = ["toc.not_included"]  # solutions and exercises are linked to, but not in the navigation

html_theme = "sphinx_book_theme"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_search_summary = False  # it fetches the pages found, which a browser refuses to do for files
html_use_index = False
html_theme_options = {
    "home_page_in_toc": True,
    "max_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "footer_content_items": ["extra-footer"],
    "extra_footer": "Prose and figures: CC BY 4.0. Code: Apache-2.0.",
}
