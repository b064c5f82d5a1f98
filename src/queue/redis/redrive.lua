-- Makes dead letters ready again, all or none.
--
-- ARGV[4], [5]  the most requests and payload bytes held, decimal
-- ARGV[6...]    ids, each once, in order
-- Returns       'ok', how many | 'full', requests held, bytes held
-- O(n log N) for n ids
local ids, bytes, dead = {}, 0, {}
for i = 6, #ARGV do ids[#ids + 1] = ARGV[i] end
for i, rec in ipairs(values_of('requests', ids)) do
  if rec and sub(rec, 1, 1) == 'x' then
    dead[#dead + 1] = { ids[i], rec }
    bytes = bytes + size_of(rec)
  end
end
local held = held_requests()
if over_bounds(held, #dead, bytes, ARGV[4], ARGV[5]) then
  return refuse('full', decimal(held), decimal(state.held_bytes))
end
for _, one in ipairs(dead) do
  local id, rec = one[1], one[2]
  remove('dead', id)
  remove('settled', sub(rec, 59, 74) .. id)
  make_ready(id, rec, NOW, 0, NEVER .. sub(fixed_of(rec), 17), nil)
end
state.held_bytes, changed = state.held_bytes + bytes, true
return answer({ 'ok', decimal(#dead) })
