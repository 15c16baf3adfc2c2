"""The app: `python app.py` here, and what a Hugging Face Space runs."""

from gemma_tune.server import main

if __name__ == "__main__":
    main()
