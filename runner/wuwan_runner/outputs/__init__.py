"""Where records go.

A program that uses the library writes a file that is whole or not there, and goes on with what an
interrupted run has left, as the command line does::

    from wuwan import Tagger
    from wuwan_runner.outputs.choose import opened

    with opened("labels.jsonl", resume=True) as sink, Tagger() as tagger:
        for records in tagger.tag_batches(["photos"], done=sink.take_over):
            sink.write(records)
        sink.commit()

What may go wrong is in `base`.
"""
