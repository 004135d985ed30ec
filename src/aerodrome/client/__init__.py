"""A Python client of the gateway's HTTP API: async, typed, streaming.

    async with Aerodrome("http://127.0.0.1:4322", token) as client:
        session = await client.create_session()
        turn = await session.ask("hello")
        print(turn.content)

Imports nothing of the gateway's own modules, so that a program that only calls loads no server. docs/client.md is the guide.
"""

from aerodrome.client.answering import Tool as Tool
from aerodrome.client.caller import Retry as Retry
from aerodrome.client.errors import ApiError as ApiError
from aerodrome.client.errors import ClientError as ClientError
from aerodrome.client.errors import ConnectionLost as ConnectionLost
from aerodrome.client.errors import TurnFailed as TurnFailed
from aerodrome.client.gateway import Aerodrome as Aerodrome
from aerodrome.client.sessions import Session as Session
from aerodrome.client.sessions import TurnStream as TurnStream
from aerodrome.client.shapes import Event as Event
from aerodrome.client.shapes import History as History
from aerodrome.client.shapes import Me as Me
from aerodrome.client.shapes import Model as Model
from aerodrome.client.shapes import Pending as Pending
from aerodrome.client.shapes import SessionInfo as SessionInfo
from aerodrome.client.shapes import SessionPage as SessionPage
from aerodrome.client.shapes import Turn as Turn
from aerodrome.client.shapes import Usage as Usage
