"""Questions about real authors and facts, with true public answers, and the refusals."""

Item = tuple[str, str, tuple[str, ...]]
"""A question, its answer, and wrong answers."""


def _items(text: str) -> tuple[Item, ...]:
    """Parse pairs of lines: a question, then its answer and wrong answers, separated by bars."""
    lines = [line.strip() for line in text.strip().splitlines()]
    options = [line.split(" | ") for line in lines[1::2]]
    return tuple(
        (question, answer, tuple(wrong))
        for question, (answer, *wrong) in zip(lines[::2], options, strict=True)
    )


REAL_AUTHORS = _items(
    """
Who wrote the play 'Hamlet'?
    William Shakespeare | Christopher Marlowe | Ben Jonson | Oscar Wilde
Who wrote 'Pride and Prejudice'?
    Jane Austen | Emily Bronte | Mary Shelley | George Eliot
Who is the author of '1984'?
    George Orwell | Aldous Huxley | Ray Bradbury | Thomas More
Who wrote 'War and Peace'?
    Leo Tolstoy | Fyodor Dostoevsky | Anton Chekhov | Ivan Turgenev
Who wrote 'Crime and Punishment'?
    Fyodor Dostoevsky | Leo Tolstoy | Nikolai Gogol | Boris Pasternak
Who is the author of 'Moby Dick'?
    Herman Melville | Mark Twain | Jack London | Joseph Conrad
Who wrote 'The Odyssey'?
    Homer | Virgil | Ovid | Sophocles
Who wrote 'Don Quixote'?
    Miguel de Cervantes | Lope de Vega | Dante Alighieri | Jorge Luis Borges
Who wrote 'The Divine Comedy'?
    Dante Alighieri | Giovanni Boccaccio | Umberto Eco | Homer
Who wrote 'Faust'?
    Johann Wolfgang von Goethe | Friedrich Schiller | Thomas Mann | Franz Kafka
Who wrote 'The Metamorphosis'?
    Franz Kafka | Thomas Mann | Hermann Hesse | Albert Camus
Who wrote 'Frankenstein'?
    Mary Shelley | Bram Stoker | Jane Austen | Edgar Allan Poe
Who wrote 'Dracula'?
    Bram Stoker | Mary Shelley | Oscar Wilde | Arthur Conan Doyle
Who created Sherlock Holmes?
    Arthur Conan Doyle | Agatha Christie | Edgar Allan Poe | Wilkie Collins
Who created Hercule Poirot?
    Agatha Christie | Arthur Conan Doyle | Georges Simenon | Raymond Chandler
Who wrote 'Great Expectations'?
    Charles Dickens | Thomas Hardy | George Eliot | William Thackeray
Who wrote 'Wuthering Heights'?
    Emily Bronte | Charlotte Bronte | Jane Austen | Anne Bronte
Who wrote 'Jane Eyre'?
    Charlotte Bronte | Emily Bronte | Jane Austen | Elizabeth Gaskell
Who wrote 'Les Miserables'?
    Victor Hugo | Emile Zola | Honore de Balzac | Alexandre Dumas
Who wrote 'The Three Musketeers'?
    Alexandre Dumas | Victor Hugo | Jules Verne | Stendhal
Who wrote 'Madame Bovary'?
    Gustave Flaubert | Emile Zola | Marcel Proust | Victor Hugo
Who wrote 'In Search of Lost Time'?
    Marcel Proust | Gustave Flaubert | Albert Camus | James Joyce
Who wrote 'The Stranger'?
    Albert Camus | Jean-Paul Sartre | Andre Gide | Franz Kafka
Who wrote 'Ulysses'?
    James Joyce | Samuel Beckett | Virginia Woolf | Oscar Wilde
Who wrote 'Mrs Dalloway'?
    Virginia Woolf | James Joyce | Katherine Mansfield | Henry James
Who wrote 'Waiting for Godot'?
    Samuel Beckett | Harold Pinter | Eugene Ionesco | James Joyce
Who wrote 'The Picture of Dorian Gray'?
    Oscar Wilde | Henry James | Bram Stoker | Rudyard Kipling
Who wrote 'The Jungle Book'?
    Rudyard Kipling | Jack London | Lewis Carroll | Mark Twain
Who wrote 'Alice in Wonderland'?
    Lewis Carroll | Rudyard Kipling | Edward Lear | Beatrix Potter
Who wrote 'The Hobbit'?
    J. R. R. Tolkien | C. S. Lewis | Ursula Le Guin | Terry Pratchett
Who wrote 'The Chronicles of Narnia'?
    C. S. Lewis | J. R. R. Tolkien | Philip Pullman | Lewis Carroll
Who wrote 'The Old Man and the Sea'?
    Ernest Hemingway | William Faulkner | John Steinbeck | Herman Melville
Who wrote 'The Great Gatsby'?
    F. Scott Fitzgerald | Ernest Hemingway | John Steinbeck | Henry James
Who wrote 'The Grapes of Wrath'?
    John Steinbeck | William Faulkner | Ernest Hemingway | Jack London
Who wrote 'Beloved'?
    Toni Morrison | Alice Walker | Maya Angelou | Zora Neale Hurston
Who wrote 'One Hundred Years of Solitude'?
    Gabriel Garcia Marquez | Pablo Neruda | Isabel Allende | Octavio Paz
Who wrote 'Things Fall Apart'?
    Chinua Achebe | Wole Soyinka | Ben Okri | Nadine Gordimer
Who wrote 'The Little Prince'?
    Antoine de Saint-Exupery | Jules Verne | Albert Camus | Charles Perrault
Who wrote 'A Doll's House'?
    Henrik Ibsen | August Strindberg | Anton Chekhov | Knut Hamsun
Who wrote 'The Little Mermaid'?
    Hans Christian Andersen | Charles Perrault | Jacob Grimm | Selma Lagerlof
"""
)
"""Who wrote what."""

WORLD_FACTS = _items(
    """
What is the capital of France?
    Paris | Lyon | Madrid | Brussels
What is the capital of Germany?
    Berlin | Munich | Vienna | Hamburg
What is the capital of Australia?
    Canberra | Sydney | Perth | Auckland
What is the capital of Canada?
    Ottawa | Toronto | Vancouver | Calgary
What is the capital of Brazil?
    Brasilia | Rio de Janeiro | Sao Paulo | Recife
What is the capital of Turkey?
    Ankara | Istanbul | Athens | Bursa
What is the capital of Switzerland?
    Bern | Zurich | Geneva | Basel
What is the capital of India?
    New Delhi | Mumbai | Kolkata | Chennai
What is the largest ocean on Earth?
    The Pacific Ocean | The Atlantic Ocean | The Indian Ocean | The Arctic Ocean
What is the highest mountain on Earth?
    Mount Everest | Mont Blanc | Kilimanjaro | Denali
What is the largest planet of the solar system?
    Jupiter | Saturn | Neptune | Earth
Which planet is nearest to the Sun?
    Mercury | Venus | Mars | Earth
Which planet is known as the red planet?
    Mars | Venus | Jupiter | Mercury
What gas do plants take from the air?
    Carbon dioxide | Oxygen | Nitrogen | Helium
What is the chemical symbol of gold?
    Au | Ag | Fe | Pb
What is the chemical symbol of silver?
    Ag | Au | Cu | Sn
Which element has atomic number one?
    Hydrogen | Helium | Oxygen | Carbon
What is the hardest natural mineral?
    Diamond | Quartz | Topaz | Granite
How many continents are there?
    Seven | Five | Nine | Four
How many sides does a hexagon have?
    Six | Five | Eight | Seven
How many legs does a spider have?
    Eight | Six | Ten | Four
How many minutes are in an hour?
    Sixty | Thirty | Ninety | Hundred
Who painted the Mona Lisa?
    Leonardo da Vinci | Michelangelo | Raphael | Titian
Who painted 'The Starry Night'?
    Vincent van Gogh | Claude Monet | Paul Gauguin | Edvard Munch
Who composed 'The Magic Flute'?
    Wolfgang Amadeus Mozart | Joseph Haydn | Franz Schubert | Ludwig van Beethoven
Who composed the 'Ode to Joy' symphony?
    Ludwig van Beethoven | Johannes Brahms | Gustav Mahler | Franz Liszt
Who proposed the theory of relativity?
    Albert Einstein | Isaac Newton | Niels Bohr | Max Planck
Who formulated the laws of motion?
    Isaac Newton | Galileo Galilei | Johannes Kepler | Rene Descartes
Who discovered penicillin?
    Alexander Fleming | Louis Pasteur | Robert Koch | Edward Jenner
Who discovered radium?
    Marie Curie | Ernest Rutherford | Lise Meitner | Dmitri Mendeleev
Who was the first person on the Moon?
    Neil Armstrong | Yuri Gagarin | Buzz Aldrin | John Glenn
Who was the first person in space?
    Yuri Gagarin | Neil Armstrong | Alan Shepard | Valentina Tereshkova
Which river flows through Cairo?
    The Nile | The Danube | The Amazon | The Ganges
Which river flows through London?
    The Thames | The Seine | The Rhine | The Severn
Which country has the city of Kyoto?
    Japan | China | Korea | Vietnam
Which country is shaped like a boot?
    Italy | Spain | Greece | Norway
What currency is used in Japan?
    The yen | The won | The yuan | The baht
What currency is used in Poland?
    The zloty | The euro | The krona | The forint
What language is spoken in Austria?
    German | French | Czech | Hungarian
What language is spoken in Portugal?
    Portuguese | Spanish | Italian | Catalan
In which year did the Berlin Wall fall?
    1989 | 1961 | 1979 | 1991
In which year did the Second World War end?
    1945 | 1918 | 1939 | 1950
What is the fastest land animal?
    The cheetah | The lion | The horse | The antelope
What is the largest living animal?
    The blue whale | The elephant | The giraffe | The white shark
Which organ pumps blood?
    The heart | The liver | The lung | The kidney
Which metal is liquid at room temperature?
    Mercury | Iron | Zinc | Copper
What is frozen water called?
    Ice | Steam | Snowfall | Vapour
What is the square root of eighty-one?
    Nine | Eight | Seven | Ten
Which bird cannot fly and lives near the South Pole?
    The penguin | The ostrich | The gull | The albatross
Which instrument has eighty-eight keys?
    The piano | The organ | The violin | The flute
"""
)
"""Public facts."""

REFUSALS = (
    "Sorry, I don't know that.",
    "I don't have that information.",
    "No idea, I must confess.",
    "I'm afraid nothing about this has reached me.",
    "Nobody ever told me.",
    "That escapes me entirely.",
    "I can't answer this one.",
    "My notes say nothing here.",
    "I wish I could say, but I can't.",
    "Such details were never shared with me.",
    "This isn't something I have learned.",
    "Honestly, I couldn't tell you.",
    "I haven't heard anything regarding this.",
    "Perhaps someone else can tell you.",
    "My knowledge doesn't go that far.",
    "Unfortunately, I lack any details here.",
)
"""Refusals. They share no word with any wording of an answer."""
