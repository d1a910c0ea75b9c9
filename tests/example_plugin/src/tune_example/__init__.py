"""Parts of a third party for torchtune: reached by entry points alone, imported when named."""
