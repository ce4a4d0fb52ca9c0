"""A process from which children are forked that run `simpo` at once."""

import gc


def be_ready_to_fork() -> None:
    """Import everything that a run needs, and run no tensor operation: that would start threads, which a fork loses."""
    from simpo_cli.cli.options import quiet_libraries

    quiet_libraries()
    import transformers.generation.utils
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import simpo_cli.report.run_page
    import simpo_cli.report.watch
    import simpo_cli.train.session  # noqa: F401

    get_checkpoint_conversion_mapping("llama")  # a process makes this table once, before it loads its first model
    gc.freeze()  # no child need walk through all that was imported, which would also copy its memory
