-- Forgets dead letters.
--
-- ARGV[4...]  ids, each once
-- Returns     'ok', how many
-- O(n log N) for n ids
local ids, purged = {}, 0
for i = 4, #ARGV do ids[#ids + 1] = ARGV[i] end
for i, rec in ipairs(values_of('requests', ids)) do
  if rec and sub(rec, 1, 1) == 'x' then
    remove('dead', ids[i])
    remove('settled', sub(rec, 59, 74) .. ids[i])
    forget(ids[i], rec)
    purged = purged + 1
  end
end
state.purged, changed = state.purged + purged, true
return answer({ 'ok', decimal(purged) })
