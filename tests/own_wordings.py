"""A file of templates of a user's own: shared by the tests of wordings and of the grammar."""

OWN = """
nouns:
  song:
    en: {a_noun: a song, noun: song, nouns: songs, do: hear, did: heard, doing: hearing}
    zh: {noun: 歌, measure: 首, do: 听, genre: "{genre}歌曲", open: 《, close: 》}
cells:
  - form: matching
    preference: implicit
    intention: none
    templates:
      - name: my-own
        en: "Encore after {history}: which {noun}?"
        zh: "{history}之后再来一{measure}？"
"""
