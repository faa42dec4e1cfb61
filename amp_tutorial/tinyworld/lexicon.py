"""The words of the tiny world: who lives in it, what things are for, and which facts hold.

Everything the generator can say is listed here, so that a reader can check any sentence by eye.
Every noun that can be an answer is one word.
"""

GIRLS = (
    "Anna Mia Lucy Rosa Nora Ella Ruby Clara Ivy Emma Lena Sara Tina Vera Alice Grace Jane Kate Lily Molly"
).split()
BOYS = ("Ben Tom Max Leo Sam Jack Paul Noah Finn Carl Adam Dan Eric Fred Hugo Ian Oscar Peter Ralph Simon").split()
NAMES = sorted(GIRLS + BOYS)

PLACES = (
    "kitchen garden barn attic cellar library market school station harbour forest meadow bakery museum "
    "church castle office workshop theatre hospital village park tower cabin"
).split()
ITEMS = (
    "kite ball cup hat book coin lamp doll drum flute mask ring scarf shell stamp sword vase watch whistle "
    "basket bell bottle candle clock comb crown feather fork glove marble"
).split()
COLOURS = "red blue green yellow black white brown pink purple orange".split()

# tool -> (what one does with it, the things one does it to)
TOOLS: dict[str, tuple[str, list[str]]] = {
    "knife": ("cut", "bread cheese apple carrot meat potato onion melon".split()),
    "spade": ("dig", "hole pit ditch trench well tunnel pond moat".split()),
    "broom": ("sweep", "floor path porch stairs yard hall street deck".split()),
    "brush": ("paint", "wall fence door chair gate shed picture ceiling".split()),
    "needle": ("sew", "shirt dress button curtain coat sock quilt flag".split()),
    "key": ("unlock", "chest drawer cabinet safe trunk cage locker cell".split()),
    "pen": ("write", "letter note list poem story diary card essay".split()),
    "saw": ("saw", "log plank branch board beam stump pole post".split()),
    "rope": ("tie", "horse goat raft bundle cow tent sled donkey".split()),
    "towel": ("dry", "dishes dog plates glass feet face puppy spoons".split()),
    "oven": ("bake", "cake pie cookies pizza rolls muffins tart biscuits".split()),
    "pot": ("boil", "eggs rice soup pasta corn beans noodles lobster".split()),
    "net": ("catch", "fish butterfly crab moth frog shrimp beetle trout".split()),
    "scissors": ("trim", "paper ribbon cloth string hedge beard wick fringe".split()),
    "ladder": ("reach", "roof shelf treetop window nest gutter chimney balcony".split()),
    "bucket": ("carry", "water sand milk mud coal ash gravel snow".split()),
    "rake": ("gather", "leaves hay grass straw twigs weeds pebbles needles".split()),
    "glue": ("mend", "bowl toy mug frame model plate jug statue".split()),
    "pump": ("inflate", "tyre balloon mattress football wheel cushion airbed dinghy".split()),
    "scale": ("weigh", "flour sugar parcel baby gold butter salt suitcase".split()),
    "ruler": ("measure", "line table rug square shadow carpet triangle garden".split()),
    "camera": ("photograph", "bride sunset parade lion mountain actor wedding castle".split()),
    "iron": ("press", "skirt trousers blouse collar sheet napkin tie uniform".split()),
    "stove": ("fry", "bacon sausage pancake mushrooms steak omelette chicken fritters".split()),
}

# relation -> (statement, question stem, {subject: value}); {a} is the subject with its article, {s} without
FACTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "eats": ("{a} eats", "what {a} eats", dict(
        cow="grass", rabbit="carrots", bear="honey", squirrel="nuts", panda="bamboo", monkey="bananas",
        frog="flies", horse="hay", dog="bones", mouse="cheese", hen="corn", owl="mice", lion="meat",
        seal="fish", caterpillar="leaves", pig="acorns")),
    "sound": ("when it calls, {a}", "what noise {a} makes", dict(
        dog="barks", cat="meows", cow="moos", duck="quacks", lion="roars", snake="hisses", horse="neighs",
        sheep="bleats", pig="grunts", bee="buzzes", wolf="howls", owl="hoots", frog="croaks", crow="caws",
        mouse="squeaks", donkey="brays")),
    "home": ("{a} lives in the", "where {a} lives", dict(
        robin="nest", bee="hive", dog="kennel", horse="stable", cow="barn", bear="cave", spider="web",
        rabbit="burrow", hen="coop", pig="sty", fox="den", camel="desert", shark="ocean", monkey="jungle",
        wolf="forest", frog="pond")),
    "baby": ("the baby of {a} is called a", "what the baby of {a} is called", dict(
        dog="puppy", cat="kitten", cow="calf", horse="foal", sheep="lamb", hen="chick", duck="duckling",
        goat="kid", bear="cub", pig="piglet", frog="tadpole", deer="fawn")),
    "colour": ("the colour of {a} is", "what colour {a} is", dict(
        lemon="yellow", cucumber="green", swan="white", raven="black", strawberry="red", carrot="orange",
        plum="purple", walnut="brown", flamingo="pink", elephant="grey", sapphire="blue")),
    "taste": ("{a} tastes", "how {a} tastes", dict(
        lemon="sour", cookie="sweet", pretzel="salty", chilli="spicy", grapefruit="tart", pickle="sharp",
        walnut="bitter", peach="juicy")),
    "works": ("{a} works in the", "where {a} works", dict(
        baker="bakery", doctor="hospital", teacher="school", farmer="field", sailor="ship", judge="court",
        waiter="restaurant", priest="church", actor="theatre", librarian="library", miner="mine",
        gardener="park", guard="prison", clerk="office")),
    "makes": ("{a} makes", "what {a} makes", dict(
        baker="bread", poet="poems", tailor="suits", potter="pots", brewer="beer", painter="pictures",
        carpenter="tables", smith="swords", cobbler="shoes", jeweller="rings", weaver="cloth",
        author="books")),
    "material": ("{a} is made of", "what {a} is made of", dict(
        window="glass", sweater="wool", tyre="rubber", boot="leather", table="wood", nail="iron",
        candle="wax", brick="clay", sail="canvas", book="paper", crown="gold", spoon="silver")),
    "moves": ("to get about, {a}", "how {a} moves", dict(
        fish="swims", eagle="flies", rabbit="hops", snake="slides", horse="gallops", worm="crawls",
        monkey="climbs", duck="waddles", crab="scuttles", lion="runs")),
}  # fmt: skip
ANIMALS = sorted(set(FACTS["eats"][2]) & (set(FACTS["sound"][2]) | set(FACTS["home"][2]) | set(FACTS["baby"][2])))

# property -> (what fails, things with that property); {n} is a name, {x} the thing
TOO: dict[str, tuple[str, list[str]]] = {
    "heavy": ("{n} cannot lift the {x}, for the {x}", "anvil piano rock safe statue barrel stove cow".split()),
    "hot": ("{n} cannot drink the {x}, for the {x}", "tea soup coffee broth cocoa milk punch cider".split()),
    "high": ("{n} cannot reach the {x}, for the {x}", "roof nest shelf branch window bell lamp kite".split()),
    "far": ("{n} cannot walk to the {x}, for the {x}", "moon city ocean desert harbour castle farm island".split()),
    "dark": ("{n} cannot see in the {x}, for the {x}", "cave cellar tunnel mine barn forest attic well".split()),
    "hard": ("{n} cannot chew the {x}, for the {x}", "nut bone crust toffee pretzel biscuit carrot meat".split()),
    "loud": ("{n} cannot sleep near the {x}, for the {x}", "drum horn siren train party band storm engine".split()),
    "fast": ("{n} cannot catch the {x}, for the {x}", "hare bus thief deer pony train fox car".split()),
    "dear": ("{n} cannot buy the {x}, for the {x}", "ring yacht palace crown jewel car watch horse".split()),
    "deep": ("{n} cannot cross the {x}, for the {x}", "river lake ditch bog canyon stream moat bay".split()),
}  # fmt: skip
BIG = "piano wardrobe sofa boat tractor bed horse ladder wagon bathtub".split()
SMALL = "bag pocket jar purse drawer teapot glove envelope lunchbox matchbox".split()

# state -> (ways to say it, what follows); {he} and {his} follow the name
SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "hungry": (["is hungry", "has not eaten all day", "skipped breakfast"],
               ["eats some bread", "makes a sandwich", "asks for dinner"]),
    "thirsty": (["is thirsty", "has a dry mouth", "wants a drink"],
                ["drinks some water", "fills a glass", "sips cool juice"]),
    "tired": (["is tired", "yawns again and again", "did not sleep well"],
              ["goes to bed", "takes a nap", "lies down to rest"]),
    "cold": (["is cold", "shivers in the wind", "feels the frost"],
             ["puts on a coat", "sits by the fire", "wraps up in a blanket"]),
    "warm": (["is too warm", "sweats in the sun", "cannot stand the heat"],
             ["rests in the shade", "takes off the sweater", "jumps into the lake"]),
    "dirty": (["is dirty", "fell into the mud", "has sticky fingers"],
              ["takes a bath", "washes with soap", "scrubs both hands"]),
    "rain": (["sees dark clouds", "hears the rain begin", "feels the first drops"],
             ["opens the umbrella", "runs for shelter", "pulls up the hood"]),
    "sick": (["is sick", "has a fever", "coughs all night"],
             ["calls the doctor", "takes some medicine", "swallows a pill"]),
    "late": (["is late", "missed the bus", "overslept again"],
             ["hurries to school", "starts to run", "hails a taxi"]),
    "bored": (["is bored", "has nothing to do", "sighs at the ceiling"],
              ["starts a puzzle", "reads a new book", "plays with a friend"]),
    "afraid": (["is afraid", "hears a strange noise", "sees a ghost"],
               ["hides under the table", "screams for help", "trembles like a leaf"]),
    "night": (["cannot see", "enters the dark tunnel", "notices the sunset"],
              ["lights a candle", "finds the lantern", "switches on the lamp"]),
    "hurt": (["is hurt", "cut one finger", "fell off the bike"],
             ["gets a bandage", "cleans the wound", "visits the nurse"]),
    "poor": (["has no money", "wants to buy a bike", "found an empty purse"],
             ["looks for a job", "sells old toys", "saves every coin"]),
    "birthday": (["has a birthday", "turns ten today", "sees ten candles"],
                 ["opens the presents", "invites all friends", "thanks the guests"]),
    "lost": (["is lost", "cannot find the way", "took the wrong road"],
             ["looks at the map", "asks a policeman", "follows the signs"]),
    "fire": (["smells smoke", "sees flames", "hears the alarm"],
             ["leaves the house", "calls the firemen", "shouts a warning"]),
    "won": (["won the race", "got the first prize", "beat every rival"],
            ["jumps for joy", "holds up the trophy", "smiles at the crowd"]),
    "seed": (["has some seeds", "wants to grow flowers", "bought a young tree"],
             ["digs in the soil", "waters the garden", "plants them in spring"]),
    "music": (["loves music", "got a new violin", "joins the band"],
              ["practises every day", "learns a song", "plays a tune"]),
}  # fmt: skip
