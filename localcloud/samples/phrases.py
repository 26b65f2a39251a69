"""Phrases for sample posts and users: openings, closings, answers, and descriptions of users."""

TITLES = (
    "{topic}: {title}",
    "{topic} - {title}",
    "{title} [{topic}]",
    "{title} ({topic})",
)
"""Patterns that add the topic to a title without it."""

OPENINGS = (
    "I have been stuck on this since yesterday and I am running out of ideas.",
    "I'm fairly new to {topic}, so apologies if this is obvious.",
    "I have read the {n} questions here that look similar, but none of them covers my case.",
    "I inherited this project from a colleague who has left, and I am trying to understand one part of it.",
    "Background: I am working on a small internal tool for about {m} people.",
    "I come from another corner of programming and have been using {topic} for about {n} months.",
    "I am cleaning up some old code and want to do it properly this time.",
    "Something weird is going on here and I would like to understand <em>why</em>, not just make it go away.",
    "I thought this would take me ten minutes. That was {n} hours ago.",
    "This came up in a code review today, and none of the {n} people in the room could explain it.",
    "I reduced my problem to the smallest example I could.",
    "Not homework, just something I ran into at work.",
    "This is for a course, so please explain rather than just posting a solution.",
    "First question here, so tell me if I should add anything.",
    "What follows is a simplified version, the real thing has about {m} more lines.",
    "I need a second pair of eyes on this.",
    "I can't share the original code, so names and values below are changed.",
    "I used to know how this works, but it has been {n} years since I last touched {topic}.",
    "I have a feeling that the answer is simple, I just don't know what to search for.",
    "Sorry for the long post, I want to give all the details.",
    "A colleague and I disagree about this one, so I hope somebody can settle it.",
    "I have spent {m} minutes with the documentation and I am none the wiser.",
)

CLOSING_QUESTIONS = (
    "What am I doing wrong?",
    "Is there a better way to do this?",
    "Am I missing something obvious here?",
    "Is this the expected behaviour, and if so, where is it documented?",
    "What is the idiomatic {topic} way of handling this?",
    "Can someone explain what is going on under the hood?",
    "What would be the cleanest solution?",
    "Has anyone seen this before?",
)

CLOSING_REMARKS = (
    "Any help is appreciated.",
    "I would be happy with a pointer to the right part of the documentation.",
    "I have searched for {n} hours and all I found were outdated posts.",
    "I can't upgrade to a newer version at the moment, so a workaround would be fine.",
    "Thanks in advance!",
    "<strong>Edit:</strong> I tried it on a colleague's machine as well, with the same result.",
    "<strong>Edit:</strong> to answer the comments: yes, I have restarted everything, {n} times.",
    "<strong>Edit:</strong> fixed a typo in the code above, the question stays the same.",
    "Is there a way to do it without rewriting the whole thing? It occurs in {m} places.",
    "I am probably overlooking something simple after staring at it for {n} hours.",
    "I can post more of the code if that helps.",
    "Please don't tell me to use something other than {topic}, that is not up to me.",
    "An explanation in plain words would help me more than a finished solution.",
    "I would rather fix the cause than hide the symptom.",
    "The other {n} solutions that I found and tried did not change anything.",
)

ANSWER_OPENINGS = (
    "",
    "",
    "<p>I ran into the same thing a while ago.</p>",
    "<p>You are nearly there.</p>",
    "<p>This is a common source of confusion.</p>",
    "<p>I could reproduce this with your example.</p>",
    "<p>Nice question, and a clear example.</p>",
    "<p>Look at this part again:</p>\n\n{code}",
    "<p>It starts here:</p>\n\n{code}",
)

ANSWER_CLOSINGS = (
    "",
    "",
    "<p>Hope that helps.</p>",
    "<p>The documentation mentions it, but it is easy to overlook.</p>",
    "<p>Tested here with the code from your question.</p>",
    "<p>If it still doesn't work after that, please add the details to the question.</p>",
    "<p>You are not the first one to fall into this trap.</p>",
)

ANSWERS = (
    "<p>I can't reproduce this: copied from the question, your example does what you expect. About</p>\n\n{code}\n\n"
    "<p>are you sure that the version which runs is the one you are editing? A cache or an old copy somewhere has "
    "fooled me more than once.</p>",
    "<p>Just to add to what has been said: forget everything but this part for a moment.</p>\n\n{code}\n\n<p>Change "
    "one thing at a time and watch what happens to it. Ten minutes of that beat guessing.</p>",
    "<p>Which version are you on? I remember fighting with</p>\n\n{code}\n\n<p>on an older release, and it was gone "
    "after an upgrade. If you cannot upgrade, look at the release notes, they list a workaround.</p>",
    "<p>I agree with the other answer and would add one thing: whatever you do in the end, leave a comment next to this"
    "</p>\n\n{code}\n\n<p>that says why. Somebody will stumble over it again, and it may well be you.</p>",
    "<p>What helped me in a similar case was to write down, for each line of</p>\n\n{code}\n\n<p>what I expected and "
    "what I really saw. The first line where the two differ is where to look.</p>",
    "<p>Be careful with the quick fixes that get posted for this: several of them only move the problem. Compare</p>"
    "\n\n{code}\n\n<p>before and after, and try the unusual cases as well.</p>",
)
"""What further answers say; `{code}` is the beginning of the question's code."""

FIRST_NAMES = (
    *("Anna", "Ben", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jakub", "Kavya", "Liam", "Mei"),
    *("Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Thabo", "Ugo", "Vera", "Wanjiru", "Xin", "Yusuf", "Zoë"),
)
LAST_NAMES = (
    *("Abebe", "Becker", "Castillo", "Dube", "Eriksen", "Fischer", "García", "Hansen", "Iyer", "Jansen", "Kowalski"),
    *("Larsson", "Müller", "Nakamura", "O'Neill", "Petrov", "Quispe", "Rossi", "Singh", "Tan", "Usman", "Weber"),
)
LOCATIONS = (
    *(None, None, None, None, "", ""),
    *("Berlin, Germany", "Bengaluru, Karnataka, India", "São Paulo, Brasil", "Toronto, ON", "東京", "Київ, Україна"),
    *("Nairobi", "Lyon, France", 'the "other" Portland', "/dev/null", "Manchester, UK", "Kraków; Polska", "Remote"),
)
WEBSITES = (
    *(None, None, None, None, None, "", ""),
    *("https://example.com", "https://blog.example.org/?author=1&lang=en", "http://www.example.net/~me"),
)
ABOUT_ME = (
    *(None, None, None, None, None, "", ""),
    "<p>Backend developer by day, hobby gardener by night.</p>\n",
    "<p>I write software for hospitals.</p>\n\n<p>My opinions are my own, and so are my bugs.</p>\n",
    '<p>Student. Learning something new every week, "learning" being a strong word.</p>\n',
    "<p>Twenty years of databases;\nstill surprised by NULL.</p>\r\n",
    "<p>Freelancer, mostly web &amp; mobile.\tReach me through my site.</p>\n",
)
