"""Actions of a desk with three intents: shared by the tests of the verb `assist` and of the desk."""

INTENTS = ["ask_love", "ask_space", "ask_war"]
ACTIONS = """
hand_over: {action: hand_over, reply: A colleague will answer.}
slots:
  order: '#?\\b(\\d{4})\\b'
  day: 'monday|tuesday'
intents:
  ask_love:
    action: find_order
    reply: 'Order {order} comes on {day}. 你好 {{}}'
    requires: {order: 'Which order?', day: 'Which day?'}
  ask_space: {action: show, reply: 'Here it is.'}
"""
