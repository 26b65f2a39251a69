"""Made-up questions whose topics a model learns in a short time."""

import numpy as np
import pyarrow as pa

WORDS = {
    "python": "python dict lambda pandas pip tuple",
    "c#": "c# linq namespace visual dotnet async",
    "sql": "select join table index query where",
    "css": "flexbox margin selector div hover float",
}
NOISE = "how to the with a problem error value function my code works when using please help"


def questions(count: int, seed: int = 0) -> pa.Table:
    """Questions of four topics of falling frequency, one in eight about something else, some about two."""
    random = np.random.default_rng(seed)
    names = [*WORDS, "gardening"]
    rows = []
    for number in range(count):
        topic = names[random.choice(5, p=[0.35, 0.24, 0.16, 0.125, 0.125])]
        tags = [topic] if number % 7 else [topic, names[number % 4]]
        known = [word for tag in dict.fromkeys(tags) for word in WORDS.get(tag, "soil seeds garden").split()]
        words = [*random.choice(known, 3), *random.choice(NOISE.split(), 9)]
        random.shuffle(words)
        rows.append(
            {
                "Id": number + 1,
                "PostTypeId": 1,
                "Title": " ".join(words[:4]),
                "Body": f"<p>{' '.join(words[4:9])}</p><pre><code>{' '.join(words[9:])} = (1);</code></pre>",
                "Tags": "".join(f"<{tag}>" for tag in dict.fromkeys(tags)),
            }
        )
    return pa.Table.from_pylist(rows)
