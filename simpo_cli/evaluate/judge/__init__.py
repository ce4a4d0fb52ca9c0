"""A language model as the judge of two answers, through any endpoint that speaks OpenAI's chat completions.

`question` is what it is asked and how its reply is read, `client` asks, `record` keeps every reply as it comes, `run`
puts both orders of each pair before it, and `win_rate` counts, with and without the length of the answers.
"""
