"""The browser side of the studio: Gradio pages on FastAPI. Never imports torch or diffusers."""
