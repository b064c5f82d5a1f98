-- After the prelude, in front of every verb with a `now`: what time alone brings.
--
-- Expiry first, then promotion, both complete; then a slice of what is past its retention or window,
-- which nobody sees any more. O(log n) for each request concerned.
if not state.format then
  return { 'gone' }
end

repeat
  local past = until_time('expiry', NOW)
  for _, member in ipairs(past) do
    local id = sub(member, 17)
    local rec = values_of('requests', { id })[1]
    remove('expiry', member)
    if rec and take_waiting(id, rec) then
      forget(id, rec)
      state.expired, changed = state.expired + 1, true
    end
  end
  flush()
until #past < SLICE

repeat
  local due = until_time('due', NOW)
  for _, member in ipairs(due) do
    local at, id = sub(member, 1, 16), sub(member, 33)
    local rec = sound_record(id)
    remove('due', member)
    remove('delayed', id)
    make_ready(id, rec, at, attempts_of(rec), fixed_of(rec), note_of(rec))
    changed = true
  end
  flush()
until #due < SLICE

for _, member in ipairs(until_time('retained', NOW)) do
  local id = sub(member, 17)
  local rec = sound_record(id)
  remove('retained', member)
  remove('done', id)
  remove('settled', sub(rec, 59, 74) .. id)
  later('HDEL', 'requests', id)
end
for _, member in ipairs(until_time('keyed', NOW)) do
  local expires, key = sub(member, 1, 16), sub(member, 17)
  local known = known_key(key)
  remove('keyed', member)
  if known and sub(known, 49, 64) == expires then remove('keys', known) end
end
flush()
-- What time has brought is whole, whatever becomes of the rest.
if changed then
  refuse()
  changed = false
end
