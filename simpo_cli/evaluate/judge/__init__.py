"""A language model as the judge of two answers, through any endpoint that speaks OpenAI's chat completions.

`client` asks and reads the reply, `run` puts both orders of each pair before it and keeps every reply as it comes, and
`win_rate` counts, with and without the length of the answers.
"""
