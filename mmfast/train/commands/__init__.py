"""The commands of the pipeline, a `main(argv)` each; `mmfast.cli` imports what is called."""
